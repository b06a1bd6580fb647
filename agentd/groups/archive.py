"""What the journal holds, for those who ask: read beside its writer, in threads of its own, page by page."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agentd.api.convert import run_status_from_message
from agentd.api.errors import InvalidSpec, JournalUnavailable, RunNotFound
from agentd.api.history import EndedRunsPage, Event, EventsPage, EventsRequest, EventWorker
from agentd.api.historywire import event_to_message
from agentd.api.patience import within
from agentd.api.types import Phase, RunStatus
from agentd.groups.database import reading
from agentd.groups.records import GroupRow, RunRow
from agentd.groups.remembered import UNREADABLE, read_ended
from agentd.groups.schema import NewerSchema
from agentd.procs.pool import Pool
from agentd.v1 import run_pb2

PATIENCE = 5.0
"""Seconds the disk has to answer."""
EVENTS_PAGE = 200
RUNS_PAGE = 100
LARGEST_PAGE = 1000
PAGE_BYTES = 2 * 1024 * 1024
"""Of one page: half of what a message may be."""

_READERS = 2
_MAX_ID = (1 << 63) - 1
_LATEST = (math.inf, "", 0)
_COLUMNS = "id, time, run_id, incarnation, role, kind, phase, round, detail, workers"
T = TypeVar("T")


class Archive:
    """Answers from the database file alone."""

    def __init__(self, path: Path, node_id: str) -> None:
        self._path = path
        self._node_id = node_id
        self._readers = Pool(_READERS, thread_name_prefix="agentd-archive")

    async def events(self, request: EventsRequest) -> EventsPage:
        """What happened, oldest first. Raises `RunNotFound` and `JournalUnavailable`."""
        if max(request.incarnation, request.after_id) > _MAX_ID:
            raise InvalidSpec("after_id", "is not one that ListEvents gave")
        return await self._read(lambda db: _events(db, request, self._node_id))

    async def ended_runs(self, page_size: int, page_token: str) -> EndedRunsPage:
        """Runs that are over, the newest end first. Raises `JournalUnavailable`."""
        before = _read_token(page_token)
        size = min(page_size or RUNS_PAGE, LARGEST_PAGE)
        return await self._read(lambda db: _ended_runs(db, size, before))

    async def ended_run(self, run_id: str) -> tuple[RunRow, tuple[GroupRow, ...]] | None:
        """The newest use of a run id, with its groups, if it has ended. Raises `JournalUnavailable`."""
        return await self._read(lambda db: read_ended(db, run_id))

    def close(self) -> None:
        """Answer nobody any more."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        def work() -> T:
            with reading(self._path) as db:
                db.text_factory = _lenient
                return query(db)

        reading_it = asyncio.get_running_loop().run_in_executor(self._readers, work)
        try:
            return await within(PATIENCE, reading_it)
        except asyncio.TimeoutError:
            raise JournalUnavailable(f"the disk did not answer in {PATIENCE:g} s") from None
        except (sqlite3.Error, OSError, NewerSchema) as error:
            raise JournalUnavailable(str(error)) from None


def _events(db: sqlite3.Connection, request: EventsRequest, node_id: str) -> EventsPage:
    condition, values = _wanted(db, request, node_id)
    if request.tail:
        values["offset"] = request.tail - 1
        query = f"SELECT id FROM events WHERE {condition} ORDER BY id DESC LIMIT 1 OFFSET :offset"
        found = db.execute(query, values).fetchone()
        # Fewer than that: all of them.
        values["after"] = max(request.after_id, found[0] - 1 if found else 0)
    size = min(request.page_size or EVENTS_PAGE, LARGEST_PAGE)
    events: list[Event] = []
    room = PAGE_BYTES
    query = f"SELECT {_COLUMNS} FROM events WHERE {condition} ORDER BY id"
    for row in db.execute(query, values):
        event = _event(node_id, *row)
        if event is None:
            continue
        room -= sum(len(str(value)) for value in row)
        if events and (len(events) == size or room < 0):
            return EventsPage(events=tuple(events), more=True)
        events.append(event)
    return EventsPage(events=tuple(events))


def _wanted(db: sqlite3.Connection, request: EventsRequest, node_id: str) -> tuple[str, dict[str, Any]]:
    """What of the table is asked for: a run's own events, and those of the node in its time."""
    values: dict[str, Any] = {"after": request.after_id}
    if not request.run_id:
        return "id > :after", values
    values["run_id"] = request.run_id
    values["incarnation"] = request.incarnation or _newest(db, request.run_id)
    own = "run_id = :run_id AND incarnation = :incarnation"
    first, last, ended = db.execute(
        f"SELECT MIN(id), MAX(id), SUM(kind = 'run_ended') FROM events WHERE {own}", values
    ).fetchone()
    if first is None and not db.execute(f"SELECT 1 FROM runs WHERE {own}", values).fetchone():
        raise RunNotFound(request.run_id, node_id)
    values["first"], values["last"] = first or _MAX_ID, last if ended else _MAX_ID
    return f"id > :after AND ({own} OR run_id = '' AND id > :first AND id < :last)", values


def _newest(db: sqlite3.Connection, run_id: str) -> int:
    query = (
        "SELECT MAX(incarnation) FROM (SELECT incarnation FROM runs WHERE run_id = :run_id "
        "UNION ALL SELECT incarnation FROM events WHERE run_id = :run_id)"
    )
    (newest,) = db.execute(query, {"run_id": run_id}).fetchone()
    return newest or 0


def _event(node_id: str, number: int, *row: Any) -> Event | None:
    """None for a row that nobody can read."""
    time, run_id, incarnation, role, kind, phase, round_, detail, workers = row
    if not isinstance(time, (int, float)):
        # A column's type is a wish in SQLite; text times a billion would be gigabytes of it.
        return None
    try:
        event = Event(
            id=number,
            time=time,
            node_id=node_id,
            kind=kind,
            run_id=run_id,
            incarnation=incarnation,
            role=role,
            phase=Phase(phase) if phase else None,
            round=round_,
            detail=detail,
            workers=tuple(EventWorker(**worker) for worker in json.loads(workers)),
        )
        # What no message carries is no event: the whole answer would be lost with it.
        event_to_message(event)
    except (*UNREADABLE, AttributeError):
        return None
    return event


def _ended_runs(db: sqlite3.Connection, size: int, before: tuple[float, str, int]) -> EndedRunsPage:
    query = (
        "SELECT ended_at, run_id, incarnation, status FROM runs "
        "WHERE ended AND (ended_at, run_id, incarnation) < (?, ?, ?) "
        "ORDER BY ended_at DESC, run_id DESC, incarnation DESC LIMIT ?"
    )
    runs: list[RunStatus] = []
    room = PAGE_BYTES
    last: tuple[float, str, int] | None = None
    for number, (ended_at, run_id, incarnation, status) in enumerate(db.execute(query, (*before, size + 1))):
        room -= len(status) if isinstance(status, bytes) else 0
        if last is not None and (number == size or room < 0):
            return EndedRunsPage(runs=tuple(runs), next_page_token=_token(*last))
        last = ended_at, run_id, incarnation
        try:
            run = run_status_from_message(run_pb2.RunStatus.FromString(status))
            runs.append(run)
        except UNREADABLE:
            continue  # said at the start of agentd
    return EndedRunsPage(runs=tuple(runs))


def _token(ended_at: float, run_id: str, incarnation: int) -> str:
    return base64.urlsafe_b64encode(json.dumps((ended_at, run_id, incarnation)).encode()).decode()


def _read_token(token: str) -> tuple[float, str, int]:
    if not token:
        return _LATEST
    try:
        ended_at, run_id, incarnation = json.loads(base64.urlsafe_b64decode(token))
        place = float(ended_at), str(run_id), min(max(int(incarnation), 0), _MAX_ID)
        place[1].encode()
        if not math.isfinite(place[0]):
            raise ValueError("no time")
        return place
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidSpec("page_token", "is not one that ListEndedRuns gave; start without it") from None


def _lenient(value: bytes) -> str:
    return value.decode(errors="replace")
