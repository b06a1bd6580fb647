"""The rows of the journal: what a run, a group, a hub leave for the next agentd of this state directory."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Hashable, Mapping
from dataclasses import asdict, field
from typing import Any, TypeAlias

from agentd.api.convert import run_spec_to_message, run_status_to_message
from agentd.api.history import EventWorker
from agentd.api.types import TERMINAL, Phase, RunSpec, RunStatus
from agentd.quickdata import dataclass

WAITING_EVENTS = 1024
"""As many events of each kind of record wait for a slow disk, of a group what its agent recorded."""

MAX_DETAIL = 4096
"""Characters of an event's sentence."""

_numbers = itertools.count()


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
    wish: str = ""
    """The Stop that was accepted last, see `agentd.groups.wish`; none if empty."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it is to be done any more."""
        return self.status.phase in TERMINAL

    def key(self) -> Hashable:
        return ("run", self.run_id, self.incarnation)

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO runs (run_id, incarnation, request_id, node_name, hub_address, "
            "passed_env, spec, status, ended, ended_at, wish) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                (self.status.finished_at or self.status.started_at) if self.ended else 0.0,
                self.wish,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRun:
    """Takes back a run that was refused after all, or forgets one that has been over for long."""

    run_id: str
    incarnation: int

    def key(self) -> Hashable:
        return ("run", self.run_id, self.incarnation)

    def write(self, db: sqlite3.Connection) -> None:
        for table in ("runs", "groups", "hub", "events", "elastic_events"):
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
    state: str = ""
    """All of it, as `agentd.groups.left` writes and reads it."""
    sequence: int = 0
    """The last report of a host that `state` knows of."""

    def key(self) -> Hashable:
        return ("group", self.run_id, self.incarnation, self.role)

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO groups (run_id, incarnation, role, phase, round, token, host_pid, "
            "host_start_time, boot_id, directory, reason, state, sequence) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                self.state,
                self.sequence,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One line of the node's history; see `agentd.api.history.Event` for the fields."""

    time: float
    kind: str
    run_id: str = ""
    incarnation: int = 0
    role: str = ""
    phase: Phase | None = None
    round: int = 0
    detail: str = ""
    workers: tuple[EventWorker, ...] = ()
    number: int = field(default_factory=_numbers.__next__, compare=False)
    """Of this process: tells two events apart that read the same."""

    def key(self) -> Hashable:
        # While the disk is behind, a newer event takes the place of an old one: memory is finite.
        return ("event", self.number % WAITING_EVENTS)

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO events (time, run_id, incarnation, role, kind, phase, round, detail, workers) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.time,
                self.run_id,
                self.incarnation,
                self.role,
                self.kind,
                "" if self.phase is None else self.phase.value,
                self.round,
                self.detail[:MAX_DETAIL].encode(errors="replace").decode(),
                json.dumps([asdict(worker) for worker in self.workers]),
            ),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRow:
    """The operator's drain of the node, as `agentd.groups.drain` writes and reads it."""

    text: str
    """Empty: the node is not drained."""

    def key(self) -> Hashable:
        return ("drain",)

    def write(self, db: sqlite3.Connection) -> None:
        if self.text:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('drain', ?)", (self.text,))
        else:
            db.execute("DELETE FROM meta WHERE key = 'drain'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockRow:
    """The clocks as they were read last, as `agentd.core.clock` writes and reads them."""

    text: str

    def key(self) -> Hashable:
        return ("clock",)

    def write(self, db: sqlite3.Connection) -> None:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)", (self.text,))


Record: TypeAlias = ClockRow | DrainRow | RunRow | ForgetRun | GroupRow | HubRow | EventRow | ElasticEventRow
