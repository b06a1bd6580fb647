"""What agentd must still know after it died, in SQLite, written by a thread of its own.

The event loop never touches the disk: a record is put into a queue, and a write waits for it at most
`PATIENCE` seconds. From then until the disk has caught up nobody waits, and `conditions` says JOURNAL_BEHIND;
a record that waits is replaced by a newer one of its key, so that the queue stays as small as its subject.
What of the file cannot be read is told by JOURNAL_DAMAGED; it stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from agentd.api.errors import JournalUnavailable
from agentd.api.history import EventKind
from agentd.core.conditions import Condition
from agentd.groups.agentuid import FILE_NAME, agent_uid
from agentd.groups.database import Opened, copied, is_damage, open_database, reading
from agentd.groups.records import HubRow, Record
from agentd.groups.remembered import Remembered, read
from agentd.groups.schema import NewerSchema
from agentd.groups.tidying import tidy_if_possible
from agentd.groups.writequeue import WriteQueue
from agentd.procs.identity import boot_id
from agentd.quickdata import dataclass

PATIENCE = 1.0
LINGER_S = 0.02
"""How long records may wait that nobody waits for."""
BEHIND = Condition.JOURNAL_BEHIND.value
DAMAGED = Condition.JOURNAL_DAMAGED.value
_MANY = 11
"""More digits than seconds have: nobody counted that."""
_CLOSE_S = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Former:
    """The agentd of this state directory before this one."""

    said_goodbye: bool
    boot_id: str
    """Of the machine it ran on. Empty: it did not say."""


class Journal:
    """The only writer of a state directory's database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue = WriteQueue()
        self._thread: threading.Thread | None = None
        self._behind = False
        self._hurry: asyncio.TimerHandle | None = None
        self._introduced = False
        """Whether the file knows of this start."""
        self.agent_uid = ""
        """Made once in this state directory."""
        self.daemon_starts = 0
        """Grows with each start of an agentd here."""
        self.clock = ""
        """What the agentd before this one noted of the clocks."""
        self.former: Former | None = None
        self.remembered = Remembered()
        self.damage: tuple[str, ...] = ()
        """What could not be read, a phrase each."""

    async def start(self) -> None:
        """Open the database and read what it remembers. Raises `JournalUnavailable`."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(target=self._work, args=(opened,), name="agentd-journal", daemon=True)
        self._thread.start()
        try:
            await opened
        except (sqlite3.Error, OSError, NewerSchema) as error:
            self._thread.join(_CLOSE_S)
            raise JournalUnavailable(f"{self._path}: {error}") from None

    @property
    def conditions(self) -> tuple[str, ...]:
        """JOURNAL_BEHIND from the first record that came too late until all are written."""
        return (BEHIND,) if self._behind or self._queue.problem else ()

    @property
    def problems(self) -> Mapping[str, str]:
        """What degrades the journal: by the name of the condition, for people."""
        begun = "" if self._introduced else "; agentd began with what it could read"
        behind = {BEHIND: f"{self._queue.problem or 'the disk is slow'}{begun}"} if self.conditions else {}
        lost = "; ".join(self.damage)
        return {**behind, DAMAGED: f"could not be read: {lost}"} if lost else behind

    async def write(self, *records: Record, patience: float = 0.0) -> bool:
        """Write the records; tells if they are safe. Waits `PATIENCE` at most; not at all if behind.

        With more `patience` it waits as long, and also for a disk that is behind only because it is slow.
        """
        if self._queue.problem or (self._behind and patience <= PATIENCE):
            self.post(*records)
            return False
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        self._queue.put(records, lambda: loop.call_soon_threadsafe(_resolve, written))
        done, _ = await asyncio.wait([written], timeout=max(patience, PATIENCE))
        if done:
            return True
        _log.warning("the journal is behind", extra={"problem": self._queue.problem or "slow disk"})
        self._behind = True
        written.add_done_callback(self._caught_up)
        return False

    def post(self, *records: Record) -> None:
        """Write the records when there is time, together with others that come meanwhile."""
        self._queue.put(records, None)
        if self._hurry is None:
            # What somebody waits for goes first: a write of its own would be in the way of that.
            self._hurry = asyncio.get_running_loop().call_later(LINGER_S, self._hurry_now)

    def _hurry_now(self) -> None:
        self._hurry = None
        self._queue.hurry()

    async def require(self, *records: Record) -> None:
        """Write the records, or raise `JournalUnavailable`; the caller then takes them back."""
        if not await self.write(*records):
            raise JournalUnavailable(self._queue.problem or "the disk is too slow")

    async def hub_announced(
        self, run_id: str, incarnation: int, record: object, patience: float = 0.0
    ) -> None:
        """A hub's state of a run, before anybody is told of it. `record` is JSON or frozen data of it."""
        text = json.dumps(record, default=_as_json)
        await self.write(HubRow(run_id=run_id, incarnation=incarnation, record=text), patience=patience)

    async def close(self) -> None:
        """Write what waits and end the thread; a disk that hangs is waited for some seconds only."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.close()
            await asyncio.get_running_loop().run_in_executor(None, thread.join, _CLOSE_S)

    def _caught_up(self, _written: object) -> None:
        self._behind = False

    def _work(self, opened: asyncio.Future[None]) -> None:
        loop = opened.get_loop()
        with contextlib.ExitStack() as stack:
            try:
                begun = self._begun()
            except BaseException as error:  # noqa: BLE001 - whatever it is, `start` must not wait for ever
                loop.call_soon_threadsafe(_fail, opened, error)
                return
            loop.call_soon_threadsafe(_resolve, opened)
            db = stack.enter_context(contextlib.closing(begun or self._reopened()))
            while self._queue.drain(db):
                db.close()
                db = stack.enter_context(contextlib.closing(self._reopened()))

    def _begun(self) -> sqlite3.Connection | None:
        """The database, read. None: the disk takes no write now, and it was read as it is."""
        try:
            db = self._open()
            try:
                self._learn(db)
                self._introduce(db)
                tidy_if_possible(db)
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            self._read_copy(error)
            return None
        return db

    def _learn(self, db: sqlite3.Connection) -> None:
        self.former = _former(db)
        self.clock = _noted_clock(db)
        # Before it is tidied: the processes of a group whose run is lost are still to be ended.
        self.remembered = read(db)
        self._tell_damage(self.remembered.unreadable)

    def _introduce(self, db: sqlite3.Connection) -> None:
        self.agent_uid, self.daemon_starts = _introduce(db, self._path.parent, self.daemon_starts)
        self._introduced = True

    def _read_copy(self, problem: Exception) -> None:
        """Learn from a copy on another disk. Raises `problem` if there is nothing, or no place for it."""
        self.damage = ()
        try:
            with copied(self._path) as db:
                self._learn(db)
                meta = dict(db.execute("SELECT key, value FROM meta"))
                self.agent_uid = agent_uid(self._path.parent, str(meta["agent_uid"]))
                # It cannot be counted up on disk: above all that was given out before, as the clock goes.
                self.daemon_starts = max(int(meta["daemon_starts"]), int(time.time())) + 1
        except (sqlite3.Error, OSError, KeyError, ValueError):
            raise problem from None
        facts = {"path": str(self._path), "problem": str(problem)}
        _log.error("the journal takes no write; agentd begins with what it says", extra=facts)
        self._queue.problem = str(problem)

    def _open(self) -> sqlite3.Connection:
        found: Opened = open_database(self._path, time.time())
        self._tell_damage(found.damage)
        return found.db

    def _reopened(self) -> sqlite3.Connection:
        """The file once it can be written: it was found damaged, or took no write when agentd began."""
        db: sqlite3.Connection | None = None
        while True:
            try:
                # Kept over the tries: it is checked as a whole when it is opened.
                db = db or self._open()
                if not self._introduced:
                    self._introduce(db)
                return db
            except (sqlite3.Error, OSError) as error:
                over = self._queue.failed(str(error))
                if db is not None and (over or (isinstance(error, sqlite3.Error) and is_damage(error))):
                    db.close()
                    db = None
                if over:
                    return sqlite3.connect(":memory:")

    def _tell_damage(self, lost: tuple[str, ...]) -> None:
        if lost:
            self.damage = (*self.damage, *lost)
            _log.error(
                "the journal is damaged; agentd goes on with what can be read",
                extra={"path": str(self._path), "unreadable": list(lost)},
            )


def open_for_reading(path: Path) -> Remembered:
    """What a state directory's database remembers, for tools; the daemon need not run.

    Raises `JournalUnavailable`.
    """
    try:
        with reading(path) as db:
            return read(db)
    except (sqlite3.Error, OSError, NewerSchema) as error:
        raise JournalUnavailable(f"{path}: {error}") from None


def _former(db: sqlite3.Connection) -> Former | None:
    query = "SELECT kind FROM events WHERE run_id = '' AND kind IN (?, ?) ORDER BY id DESC LIMIT 1"
    last = db.execute(query, (EventKind.AGENTD_STARTED.value, EventKind.AGENTD_ENDED.value)).fetchone()
    if last is None:
        return None
    boot = db.execute("SELECT value FROM meta WHERE key = 'boot_id'").fetchone()
    return Former(last[0] == EventKind.AGENTD_ENDED, boot[0] if boot else "")


def _noted_clock(db: sqlite3.Connection) -> str:
    found = db.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()
    return found[0] if found and isinstance(found[0], str) else ""


def _introduce(db: sqlite3.Connection, state_dir: Path, given: int) -> tuple[str, int]:
    """The agent's uid and the number of this start, which is above those of all earlier ones.

    `given`: the number that it has already.
    """
    known = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('agent_uid', 'daemon_starts')"))
    is_first = not known and not Path(state_dir, FILE_NAME).exists()
    uid = agent_uid(state_dir, str(known.get("agent_uid", "")))
    counted = "0" if is_first else str(known.get("daemon_starts", ""))
    # A count that was lost had begun at 0, and no start takes as little as a second.
    starts = (int(counted) if counted.isdecimal() and len(counted) < _MANY else int(time.time())) + 1
    starts = max(starts, given)
    with db:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('agent_uid', ?)", (uid,))
        db.execute("INSERT OR REPLACE INTO meta VALUES ('daemon_starts', ?)", (str(starts),))
        db.execute("INSERT OR REPLACE INTO meta VALUES ('boot_id', ?)", (boot_id(),))
    return uid, starts


def _as_json(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        # What is within comes here by itself; `asdict` would copy all of it first.
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be journalled")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
