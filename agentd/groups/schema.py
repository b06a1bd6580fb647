"""The tables of the journal and how a file of an older agentd becomes one of this.

Each step is one transaction, its version number in it: a file is at one of them, never between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeAlias

from google.protobuf.message import DecodeError

from agentd.quickdata import dataclass
from agentd.v1 import run_pb2

Statement: TypeAlias = str | Callable[[sqlite3.Connection], object]


@dataclass(frozen=True, slots=True)
class Step:
    """What makes a file of the version before one of this version."""

    version: int
    statements: tuple[Statement, ...]


class NewerSchema(Exception):
    """The file was written by an agentd that knows more."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"it was written by a newer agentd (schema {found}, here {known}): upgrade agentd, or give it "
            "another state directory"
        )
        self.found = found
        self.known = known


def _write_end_times(db: sqlite3.Connection) -> None:
    """When each run ended stands in its status; one that cannot be read counts from its start."""
    rows = db.execute("SELECT run_id, incarnation, status FROM runs WHERE ended").fetchall()
    for run_id, incarnation, status in rows:
        try:
            finished_at = run_pb2.RunStatus.FromString(status).finished_at.ToNanoseconds() / 1e9
        except (DecodeError, TypeError):
            finished_at = 0.0
        db.execute(
            "UPDATE runs SET ended_at = ? WHERE run_id = ? AND incarnation = ?",
            (finished_at or incarnation / 1000, run_id, incarnation),
        )


STEPS: tuple[Step, ...] = (
    Step(
        1,
        (
            # Version 1 made its tables one by one: a file of version 0 may have some.
            "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
            """CREATE TABLE IF NOT EXISTS runs (
                run_id TEXT NOT NULL, incarnation INTEGER NOT NULL, request_id TEXT NOT NULL,
                node_name TEXT NOT NULL, hub_address TEXT NOT NULL, passed_env TEXT NOT NULL,
                spec BLOB NOT NULL, status BLOB NOT NULL, ended INTEGER NOT NULL,
                PRIMARY KEY (run_id, incarnation)
            ) WITHOUT ROWID""",
            """CREATE TABLE IF NOT EXISTS groups (
                run_id TEXT NOT NULL, incarnation INTEGER NOT NULL, role TEXT NOT NULL, phase TEXT NOT NULL,
                round INTEGER NOT NULL, token TEXT NOT NULL, host_pid INTEGER NOT NULL,
                host_start_time INTEGER NOT NULL, boot_id TEXT NOT NULL, directory TEXT NOT NULL,
                reason TEXT NOT NULL, PRIMARY KEY (run_id, incarnation, role)
            ) WITHOUT ROWID""",
            """CREATE TABLE IF NOT EXISTS hub (
                run_id TEXT NOT NULL, incarnation INTEGER NOT NULL, record TEXT NOT NULL,
                PRIMARY KEY (run_id, incarnation)
            ) WITHOUT ROWID""",
            """CREATE TABLE IF NOT EXISTS events (
                id INTEGER PRIMARY KEY, time REAL NOT NULL, run_id TEXT NOT NULL,
                incarnation INTEGER NOT NULL, role TEXT NOT NULL, event TEXT NOT NULL, phase TEXT NOT NULL,
                detail TEXT NOT NULL
            )""",
        ),
    ),
    Step(
        2,
        (
            # The first agentds of version 1 had none.
            """CREATE TABLE IF NOT EXISTS elastic_events (
                id INTEGER PRIMARY KEY, time REAL NOT NULL, run_id TEXT NOT NULL,
                incarnation INTEGER NOT NULL, role TEXT NOT NULL, sequence INTEGER NOT NULL,
                name TEXT NOT NULL, source TEXT NOT NULL, event TEXT NOT NULL,
                UNIQUE (run_id, incarnation, role, sequence, time)
            )""",
            "ALTER TABLE events RENAME TO events_1",
            # AUTOINCREMENT: who reads on after an id must never meet it again.
            """CREATE TABLE events (
                id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, run_id TEXT NOT NULL,
                incarnation INTEGER NOT NULL, role TEXT NOT NULL, kind TEXT NOT NULL, phase TEXT NOT NULL,
                round INTEGER NOT NULL, detail TEXT NOT NULL, workers TEXT NOT NULL
            )""",
            """INSERT INTO events (id, time, run_id, incarnation, role, kind, phase, round, detail, workers)
                SELECT id, time, run_id, incarnation, role, 'phase', phase, 0, detail, '[]' FROM events_1""",
            "DROP TABLE events_1",
            "CREATE INDEX events_of_run ON events (run_id, incarnation, id)",
            "ALTER TABLE runs ADD COLUMN ended_at REAL NOT NULL DEFAULT 0",
            _write_end_times,
            # What the next agentd needs to go on where this one was.
            "ALTER TABLE groups ADD COLUMN state TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE groups ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE runs ADD COLUMN wish TEXT NOT NULL DEFAULT ''",
        ),
    ),
)
"""Every step there ever was; one that was released is never changed again."""

VERSION = STEPS[-1].version


def migrate(db: sqlite3.Connection, steps: Sequence[Step] = STEPS) -> int:
    """Bring the file to the last of the steps; answers the version it had. Raises `NewerSchema`."""
    isolation, db.isolation_level = db.isolation_level, None  # transactions are begun here, by name
    try:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > steps[-1].version:
            raise NewerSchema(found, steps[-1].version)
        for step in steps:
            if step.version > found:
                _take(db, step)
        return int(found)
    finally:
        db.isolation_level = isolation


def _take(db: sqlite3.Connection, step: Step) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in step.statements:
            if callable(statement):
                statement(db)
            else:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {step.version}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
