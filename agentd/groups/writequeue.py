"""Records on their way to the disk: what callers put in, and what the journal's thread takes out and writes.

Of each key only the newest waits, so that a disk that takes nothing for long costs no more memory than there
are subjects. What could not be written is tried again, and who waits for it waits on.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Mapping

from agentd.groups.database import is_damage
from agentd.groups.records import Record
from agentd.groups.tidying import tidy_if_possible

_RETRY_S = 0.5
_PROBE = "INSERT OR REPLACE INTO meta VALUES ('written_again_at', ?)"
_TIDY_EACH = 2000
FOLD_AFTER_S = 0.5
"""Without a write, before the write-ahead log is put into the database."""
FOLDED_TOGETHER = 250
"""Records; a shorter log is left as it is."""
MOST_PAGES = 10_000
"""Of the log, 40 MiB; SQLite's own measure is a thousand."""
_UNFIT = (ValueError, OverflowError, TypeError, sqlite3.DataError)
"""What a record raises that no other try would write."""
_log = logging.getLogger(__name__)


class WriteQueue:
    """Records on their way to the disk, the newest of each key, and who waits for them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()  # guards all below; never held during I/O
        self._records: dict[Hashable, Record] = {}
        self._waiting: list[Callable[[], object]] = []
        self._closed = False
        self.problem = ""
        """Why the disk takes nothing now; empty: it does."""

    def put(self, records: tuple[Record, ...], written: Callable[[], object] | None) -> None:
        """Have the records written; `written()` is called in the writing thread once they are safe.

        Where nobody waits for it they may wait for others, or for `hurry`.
        """
        with self._condition:
            for record in records:
                # Taken out first: a replaced record must not overtake what was written after it.
                self._records.pop(record.key(), None)
                self._records[record.key()] = record
            if written is not None:
                self._waiting.append(written)
                self._condition.notify()

    def hurry(self) -> None:
        """Write what waits now."""
        with self._condition:
            self._condition.notify()

    def close(self) -> None:
        """Nothing comes any more: `drain` ends when all is written or cannot be."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def drain(self, db: sqlite3.Connection) -> bool:
        """Write until closed and empty or unwritable; True: the file is damaged and is to be opened again."""
        count = 0
        log = _WriteAheadLog(db)
        while True:
            with self._condition:
                asked = self._condition.wait_for(
                    lambda: self._records or self._waiting or self._closed,
                    _RETRY_S if self.problem else log.patience(),
                )
                records, self._records = self._records, {}
                waiting, self._waiting = self._waiting, []
                closed = self._closed
            if not (asked or self.problem):
                log.fold()
                continue
            error = self._commit(db, records)
            if error is None:
                count += len(records)
                log.grew(len(records))
                _call_all(waiting)
                if count > _TIDY_EACH:
                    count = 0
                    tidy_if_possible(db)
            else:
                self._put_back(records, waiting)
            if closed and (self.problem or not self._records):
                return False
            if error is not None and is_damage(error):
                return True

    def failed(self, problem: str) -> bool:
        """The file cannot be opened; wait a while. Whether there is nothing to wait for any more."""
        self.problem = problem
        with self._condition:
            if not self._closed:
                self._condition.wait(_RETRY_S)
            return self._closed

    def _commit(self, db: sqlite3.Connection, records: Mapping[Hashable, Record]) -> sqlite3.Error | None:
        try:
            with db:
                if self.problem:
                    # What waited may have been taken back: only a real write tells that the disk takes any.
                    db.execute(_PROBE, (str(time.time()),))
                for record in records.values():
                    _write(db, record)
        except sqlite3.Error as error:
            if not self.problem:
                _log.error("the journal cannot be written", extra={"problem": str(error)})
            self.problem = str(error)
            return error
        self.problem = ""
        return None

    def _put_back(self, records: dict[Hashable, Record], waiting: list[Callable[[], object]]) -> None:
        with self._condition:
            newer, self._records = self._records, records
            self._records.update(newer)
            self._waiting = waiting + self._waiting
            if not self._closed:
                self._condition.wait(_RETRY_S)


class _WriteAheadLog:
    """What was written since it was last put into the database, which takes two fsyncs.

    SQLite alone does that in the middle of whichever write makes the log long, and whoever waits for that
    write waits for the disk. It still does so where there is never a quiet moment.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._records = 0
        with contextlib.suppress(sqlite3.Error):
            db.execute(f"PRAGMA wal_autocheckpoint = {MOST_PAGES}")

    def patience(self) -> float | None:
        """How long to wait for something to write before it is put into the database."""
        return FOLD_AFTER_S if self._records >= FOLDED_TOGETHER else None

    def grew(self, records: int) -> None:
        """So many were written."""
        self._records += records

    def fold(self) -> None:
        """Put it into the database now. Where the disk does not let us, another time."""
        self._records = 0
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _write(db: sqlite3.Connection, record: Record) -> None:
    """A record that nothing could write is left out: it must not take the others, or the thread, with it."""
    try:
        record.write(db)
    except _UNFIT as error:
        _log.error("a record is not for the journal", extra={"record": record.key(), "problem": str(error)})


def _call_all(callbacks: list[Callable[[], object]]) -> None:
    for callback in callbacks:
        # The loop of a waiter may be closed by now.
        with contextlib.suppress(RuntimeError):
            callback()
