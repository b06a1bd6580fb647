"""What the journal remembers, read row by row: one that nobody can read costs no other, and is told."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from agentd.api.convert import run_spec_from_message, run_status_from_message
from agentd.api.errors import AgentError
from agentd.api.types import Drain, Phase
from agentd.groups.records import GroupRow, HubRow, RunRow
from agentd.groups.wish import read_drain
from agentd.hub.record import read_record
from agentd.quickdata import dataclass
from agentd.v1 import run_pb2

T = TypeVar("T")

UNREADABLE = (ValueError, TypeError, KeyError, RecursionError, OverflowError, DecodeError, AgentError)
"""What a row raises that holds something else than was written."""

_NAMED = 20
"""As many unreadable rows are named; of more, the number."""
_RUNS = (
    "SELECT run_id, incarnation, request_id, node_name, hub_address, passed_env, spec, status, wish FROM runs"
)
_GROUPS = (
    "SELECT run_id, incarnation, role, phase, round, token, host_pid, host_start_time, boot_id, "
    "directory, reason, state, sequence FROM groups"
)
_HUBS = "SELECT run_id, incarnation, record FROM hub"
_DRAIN = "SELECT key, value FROM meta WHERE key = 'drain'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What an earlier agentd of this state directory wrote."""

    runs: tuple[RunRow, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    hubs: tuple[HubRow, ...] = ()
    drain: Drain | None = None
    """The operator's drain of the node, if there is one."""
    unreadable: tuple[str, ...] = ()
    """What could not be read, a phrase each."""


def read(db: sqlite3.Connection) -> Remembered:
    """All that the database remembers and that can be read."""
    problems: list[str] = []
    text_factory, db.text_factory = db.text_factory, _text
    try:
        runs = tuple(rows(db, _RUNS, "runs", _run_row, problems))
        groups = tuple(rows(db, _GROUPS, "groups", _group_row, problems))
        hubs = tuple(rows(db, _HUBS, "hub", _hub_row, problems))
        drains = tuple(rows(db, _DRAIN, "meta", _drain, problems))
    finally:
        db.text_factory = text_factory
    if len(problems) > _NAMED:
        problems[_NAMED:] = [f"{len(problems) - _NAMED} more rows"]
    return Remembered(
        runs=runs, groups=groups, hubs=hubs, drain=drains[0] if drains else None, unreadable=tuple(problems)
    )


def read_ended(db: sqlite3.Connection, run_id: str) -> tuple[RunRow, tuple[GroupRow, ...]] | None:
    """The newest use of a run id, with its groups, if it has ended and can be read."""
    problems: list[str] = []
    newest = f"{_RUNS} WHERE run_id = ? AND ended ORDER BY incarnation DESC LIMIT 1"
    for run in rows(db, newest, "runs", _run_row, problems, (run_id,)):
        of_it = f"{_GROUPS} WHERE run_id = ? AND incarnation = ?"
        return run, tuple(rows(db, of_it, "groups", _group_row, problems, (run_id, run.incarnation)))
    return None


def rows(
    db: sqlite3.Connection,
    query: str,
    table: str,
    make: Callable[..., T],
    problems: list[str],
    values: tuple[object, ...] = (),
) -> Iterator[T]:
    """Each row as a value; `problems` gets a phrase for each that cannot be read."""
    try:
        for row in db.execute(query, values):
            try:
                made = make(*row)
            except UNREADABLE as error:
                problems.append(f"a row of {table} ({_label(row)}: {error!s:.100})")
            else:
                yield made
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            raise
        problems.append(f"the rest of {table} ({error})")


def _text(value: bytes) -> str | bytes:
    """Text as SQLite stores it; what is none stays bytes, and is refused where a text belongs."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _label(row: tuple[Any, ...]) -> str:
    run_id, incarnation = row[:2]
    return f"run {run_id!s:.128}, incarnation {incarnation!s:.24}"


def _run_row(
    run_id: object, incarnation: object, request_id: object, node_name: object, hub_address: object,
    passed_env: object, spec: object, status: object, wish: object,
) -> RunRow:  # fmt: skip
    row = RunRow(
        run_id=as_text(run_id),
        incarnation=as_number(incarnation),
        request_id=as_text(request_id),
        spec=run_spec_from_message(run_pb2.RunSpec.FromString(_bytes(spec))),
        status=run_status_from_message(run_pb2.RunStatus.FromString(_bytes(status))),
        node_name=as_text(node_name),
        hub_address=as_text(hub_address),
        passed_env={as_text(name): as_text(value) for name, value in _dict(as_text(passed_env)).items()},
        wish=as_text(wish),
    )
    if (row.status.run_id, row.status.incarnation) != (row.run_id, row.incarnation):
        raise ValueError("it holds another run's status")
    return row


def _group_row(
    run_id: object, incarnation: object, role: object, phase: object, round_: object, token: object,
    host_pid: object, host_start_time: object, boot_id: object, directory: object, reason: object,
    state: object, sequence: object,
) -> GroupRow:  # fmt: skip
    return GroupRow(
        run_id=as_text(run_id),
        incarnation=as_number(incarnation),
        role=as_text(role),
        phase=Phase(phase),
        round=as_number(round_),
        token=as_text(token),
        host_pid=as_number(host_pid),
        host_start_time=as_number(host_start_time),
        boot_id=as_text(boot_id),
        directory=as_text(directory),
        reason=as_text(reason),
        state=as_text(state),
        sequence=as_number(sequence),
    )


def _hub_row(run_id: object, incarnation: object, record: object) -> HubRow:
    row = HubRow(run_id=as_text(run_id), incarnation=as_number(incarnation), record=as_text(record))
    read_record(row.record)
    return row


def _drain(_key: object, value: object) -> Drain:
    return read_drain(as_text(value))


def _dict(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError(f"no JSON object: {text!r:.60}")
    return found


def as_text(value: object) -> str:
    """The value if it is a text. Raises `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"no text: {value!r:.60}")
    return value


def as_number(value: object) -> int:
    """The value if it is a number that counts something. Raises `TypeError`."""
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"no number: {value!r:.60}")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"no bytes: {value!r:.60}")
    return value
