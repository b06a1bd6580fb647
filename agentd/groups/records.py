"""The rows of the journal: what a run, a group, a hub leave for the next agentd of this state directory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agentd.api.convert import (
    run_spec_from_message,
    run_spec_to_message,
    run_status_from_message,
    run_status_to_message,
)
from agentd.api.types import TERMINAL, Phase, RunSpec, RunStatus
from agentd.v1 import run_pb2

WAITING_EVENTS = 1024
"""As many events of a group wait for a slow disk."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT NOT NULL, incarnation INTEGER NOT NULL, request_id TEXT NOT NULL, node_name TEXT NOT NULL,
    hub_address TEXT NOT NULL, passed_env TEXT NOT NULL, spec BLOB NOT NULL, status BLOB NOT NULL,
    ended INTEGER NOT NULL, PRIMARY KEY (run_id, incarnation)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS groups (
    run_id TEXT NOT NULL, incarnation INTEGER NOT NULL, role TEXT NOT NULL, phase TEXT NOT NULL,
    round INTEGER NOT NULL, token TEXT NOT NULL, host_pid INTEGER NOT NULL, host_start_time INTEGER NOT NULL,
    boot_id TEXT NOT NULL, directory TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (run_id, incarnation, role)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hub (
    run_id TEXT NOT NULL, incarnation INTEGER NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (run_id, incarnation)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, run_id TEXT NOT NULL, incarnation INTEGER NOT NULL,
    role TEXT NOT NULL, event TEXT NOT NULL, phase TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS elastic_events (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, run_id TEXT NOT NULL, incarnation INTEGER NOT NULL,
    role TEXT NOT NULL, sequence INTEGER NOT NULL, name TEXT NOT NULL, source TEXT NOT NULL,
    event TEXT NOT NULL, UNIQUE (run_id, incarnation, role, sequence, time)
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run as this node took it on, and how it stands."""

    run_id: str
    incarnation: int
    request_id: str
    spec: RunSpec
    status: RunStatus
    node_name: str = ""
    hub_address: str = ""
    """Empty: the hub is here."""
    passed_env: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is to be done any more."""
        return self.status.phase in TERMINAL

    def key(self) -> Hashable:
        return ("run", self.run_id, self.incarnation)

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.run_id,
                self.incarnation,
                self.request_id,
                self.node_name,
                self.hub_address,
                json.dumps(dict(self.passed_env)),
                run_spec_to_message(self.spec).SerializeToString(),
                run_status_to_message(self.status).SerializeToString(),
                self.ended,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRun:
    """Takes back a run that was refused after all."""

    run_id: str
    incarnation: int

    def key(self) -> Hashable:
        return ("run", self.run_id, self.incarnation)

    def write(self, db: sqlite3.Connection) -> None:
        for table in ("runs", "groups", "hub", "elastic_events"):
            db.execute(
                f"DELETE FROM {table} WHERE run_id = ? AND incarnation = ?", (self.run_id, self.incarnation)
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One worker group and how to find its processes."""

    run_id: str
    incarnation: int
    role: str
    phase: Phase
    round: int = 0
    token: str = ""
    host_pid: int = 0
    host_start_time: int = 0
    boot_id: str = ""
    directory: str = ""
    reason: str = ""

    def key(self) -> Hashable:
        return ("group", self.run_id, self.incarnation, self.role)

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO groups VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.run_id,
                self.incarnation,
                self.role,
                self.phase.value,
                self.round,
                self.token,
                self.host_pid,
                self.host_start_time,
                self.boot_id,
                self.directory,
                self.reason,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRow:
    """What a hub has announced of a run, as JSON."""

    run_id: str
    incarnation: int
    record: str

    def key(self) -> Hashable:
        return ("hub", self.run_id, self.incarnation)

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO hub VALUES (?, ?, ?)", (self.run_id, self.incarnation, self.record)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EventRow:
    """One line of a group's history."""

    time: float
    run_id: str
    incarnation: int
    role: str
    event: str
    phase: Phase
    detail: str = ""

    def key(self) -> Hashable:
        return self

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO events (time, run_id, incarnation, role, event, phase, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.time, self.run_id, self.incarnation, self.role, self.event, self.phase.value, self.detail),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticEventRow:
    """An event that a group's elastic agent recorded."""

    run_id: str
    incarnation: int
    role: str
    sequence: int
    """Of the host's report: the same one twice is one row."""
    event: str
    """JSON in torch's form."""

    def key(self) -> Hashable:
        # While the disk is behind, a newer event takes the place of an old one: host.jsonl has both.
        return ("elastic", self.run_id, self.incarnation, self.role, self.sequence % WAITING_EVENTS)

    def write(self, db: sqlite3.Connection) -> None:
        event = _object(self.event)
        db.execute(
            "INSERT OR IGNORE INTO elastic_events "
            "(time, run_id, incarnation, role, sequence, name, source, event) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                float(event.get("timestamp", 0)) / 1000,
                self.run_id,
                self.incarnation,
                self.role,
                self.sequence,
                str(event.get("name", "")),
                str(event.get("source", "")),
                self.event,
            ),
        )


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"no JSON object: {text!r:.60}")
    return found


Record: TypeAlias = RunRow | ForgetRun | GroupRow | HubRow | EventRow | ElasticEventRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What an earlier agentd of this state directory wrote."""

    runs: tuple[RunRow, ...]
    groups: tuple[GroupRow, ...]
    hubs: tuple[HubRow, ...]


def read(db: sqlite3.Connection) -> Remembered:
    """All that the database remembers."""
    runs = db.execute(
        "SELECT run_id, incarnation, request_id, node_name, hub_address, passed_env, spec, status FROM runs"
    )
    groups = db.execute(
        "SELECT run_id, incarnation, role, phase, round, token, host_pid, host_start_time, boot_id, "
        "directory, reason FROM groups"
    )
    hubs = db.execute("SELECT run_id, incarnation, record FROM hub")
    return Remembered(
        runs=tuple(_run_row(row) for row in runs),
        groups=tuple(_group_row(row) for row in groups),
        hubs=tuple(HubRow(run_id=row[0], incarnation=row[1], record=row[2]) for row in hubs),
    )


def _run_row(row: tuple[str, int, str, str, str, str, bytes, bytes]) -> RunRow:
    run_id, incarnation, request_id, node_name, hub_address, passed_env, spec, status = row
    return RunRow(
        run_id=run_id,
        incarnation=incarnation,
        request_id=request_id,
        spec=run_spec_from_message(run_pb2.RunSpec.FromString(spec)),
        status=run_status_from_message(run_pb2.RunStatus.FromString(status)),
        node_name=node_name,
        hub_address=hub_address,
        passed_env=json.loads(passed_env),
    )


def _group_row(row: tuple[str, int, str, str, int, str, int, int, str, str, str]) -> GroupRow:
    run_id, incarnation, role, phase, round_, token, pid, start_time, boot_id, directory, reason = row
    return GroupRow(
        run_id=run_id,
        incarnation=incarnation,
        role=role,
        phase=Phase(phase),
        round=round_,
        token=token,
        host_pid=pid,
        host_start_time=start_time,
        boot_id=boot_id,
        directory=directory,
        reason=reason,
    )
