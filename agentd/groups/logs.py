"""Worker output over the wire: reads the log files, follows them over rounds, loses and repeats nothing.

A reader is a coroutine with a few offsets. Disks are read in a small pool of threads, never longer than
one batch for one reader, so that a slow client or a thousand quiet ones hold up nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Final, ParamSpec, Protocol, TypeVar

from agentd.api.errors import LimitExceeded, LogNotFound, RunNotFound
from agentd.api.patience import within
from agentd.api.types import (
    TERMINAL,
    LogChunk,
    LogGap,
    LogsRequest,
    LogStream,
    RunStatus,
    StreamEnd,
    StreamEndCause,
)
from agentd.groups.inotify import FileWatcher
from agentd.groups.logcursor import (
    PATIENCE,
    Cursor,
    Selection,
    WorkerLog,
    file_size,
    newest_round,
    read_batch,
    tail_offset,
)
from agentd.procs.pool import Pool

__all__ = ["LogReader", "LogSource", "WorkerLog"]

THREADS: Final = 4
LOOK_INTERVAL: Final = 1.0
"""Seconds after which a reader looks although nothing woke it."""
SHORTAGE_S: Final = 30.0
"""How long a reader waits for a descriptor."""
SHORTAGE_PAUSE_S: Final = 0.25
PASS_INTERVAL: Final = 0.02
"""Seconds between two looks: a worker that prints line by line is read in pieces, not in lines."""

P = ParamSpec("P")
T = TypeVar("T")


class LogSource(Protocol):
    """The part of the registry that knows where logs are."""

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus: ...

    def worker_logs(self, run_id: str, incarnation: int) -> tuple[WorkerLog, ...]: ...

    async def wait_change(self, run_id: str, incarnation: int, revision: int) -> object: ...


class LogReader:
    """Reads logs of this node for any number of callers."""

    def __init__(self, source: LogSource, node_id: str) -> None:
        self._source = source
        self._node_id = node_id
        self._pool = Pool(THREADS, thread_name_prefix="agentd-logs")
        self._closed = False
        self._watcher = FileWatcher(asyncio.get_running_loop())

    async def read(self, request: LogsRequest) -> AsyncGenerator[LogChunk | LogGap | StreamEnd, None]:
        """The output that is asked for, what of it is gone, and why it ends.

        Raises `LogNotFound` if there can be none, `LimitExceeded` if agentd cannot open the files.
        """
        status = self._source.status(request.run_id, request.incarnation)
        reading = _Reading(self, request, status.incarnation)
        try:
            async with aclosing(reading.run()) as answers:
                async for answer in answers:
                    yield answer
        except _Closed:
            return
        finally:
            reading.close()

    async def close(self) -> None:
        """Let go of threads and descriptors. A reading that is still under way for nobody ends."""
        self._closed = True
        self._watcher.close()
        # A thread that waits for a dead disk is not waited for.
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Closed(Exception):
    """Nothing is read any more."""


class _Reading:
    """One request's way through the files."""

    def __init__(self, reader: LogReader, request: LogsRequest, incarnation: int) -> None:
        self._reader = reader
        self._source = reader._source
        self._request = request
        self._incarnation = incarnation
        self._selection = Selection.begin(request, self._logs())
        self._newest_at_start = newest_round(self._logs())
        self._cursors: dict[tuple[str, int, int, LogStream], Cursor] = {}
        self._closed_round = -1
        self._found_any = False
        self._wake = asyncio.Event()
        self._watches: dict[str, int] = {}
        self._change: asyncio.Future[object] | None = None

    async def run(self) -> AsyncGenerator[LogChunk | LogGap | StreamEnd, None]:
        """Look, give out what is new, wait; until nothing can come any more."""
        while True:
            status = self._status()
            logs = self._logs()
            # Asked before the files are read: what was written until then is read below.
            over = self._is_over(status, newest_round(logs))
            await self._admit(logs)
            async for chunk in self._advance(over):
                yield chunk
            if over:
                self._check_found()
                yield StreamEnd(cause=StreamEndCause.FINISHED, reason=_why(status))
                return
            await self._wait(status)

    def close(self) -> None:
        """Undo the watches."""
        if self._change is not None:
            self._change.cancel()
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            self._unwatch(watch)

    def _logs(self) -> tuple[WorkerLog, ...]:
        try:
            return self._source.worker_logs(self._request.run_id, self._incarnation)
        except RunNotFound:
            return ()

    def _status(self) -> RunStatus | None:
        try:
            return self._source.status(self._request.run_id, self._incarnation)
        except RunNotFound:
            # Forgotten while it was read: it has ended long ago.
            return None

    def _is_over(self, status: RunStatus | None, newest: int) -> bool:
        if status is None or not self._request.follow:
            return True
        last = self._selection.last_round
        if last is not None and newest > last:
            return True
        mine = (
            group for node in status.nodes if node.node_id == self._reader._node_id for group in node.groups
        )
        return status.phase in TERMINAL and all(group.phase in TERMINAL for group in mine)

    async def _admit(self, logs: Sequence[WorkerLog]) -> None:
        """Make cursors for files that were not there before."""
        for log, stream in self._selection.of(logs):
            key = (log.role, log.round, log.local_rank, stream)
            if log.round <= self._closed_round:
                continue
            self._found_any = True
            cursor = self._cursors.get(key)
            if cursor is None:
                cursor = self._cursors[key] = Cursor(log, stream)
                await self._place(cursor)
            if self._request.follow and cursor.path not in self._watches:
                watch = await self._in_pool(self._reader._watcher.add, cursor.path, self._wake)
                if watch is not None:
                    self._watches[cursor.path] = watch

    async def _place(self, cursor: Cursor) -> None:
        resumed = self._selection.resumed_at(cursor.log, cursor.stream)
        tail = self._request.tail_lines
        if resumed is not None:
            cursor.offset = resumed
        elif tail is not None and cursor.log.round <= self._newest_at_start:
            cursor.offset = await self._patiently(partial(tail_offset, cursor.path, tail))
        if not self._request.follow:
            # A file may grow faster than it is read; without `follow` that must end.
            cursor.limit = await self._in_pool(file_size, cursor.path)

    async def _advance(self, over: bool) -> AsyncGenerator[LogChunk | LogGap, None]:
        """Give out what the files hold, older rounds first."""
        rounds = sorted({cursor.log.round for cursor in self._cursors.values()})
        for number in rounds:
            final = over or number < rounds[-1]
            cursors = [cursor for cursor in self._cursors.values() if cursor.log.round == number]
            async for chunk in self._drain(cursors, final):
                yield chunk
            if final:
                self._close_round(number)

    async def _drain(self, cursors: list[Cursor], final: bool) -> AsyncGenerator[LogChunk | LogGap, None]:
        progressed = True
        while progressed:
            progressed = False
            places = [(cursor.path, cursor.offset, cursor.room()) for cursor in cursors]
            batch = await self._patiently(partial(read_batch, places))
            now, node_id = time.monotonic(), self._reader._node_id
            for cursor, piece in zip(cursors, batch, strict=False):
                gap = cursor.skip(piece, node_id)
                chunk = cursor.take(piece.data, final=final, now=now, node_id=node_id)
                for found in (gap, chunk):
                    if found is not None:
                        progressed = True
                        yield found
            # Those that did not fit into the batch come first in the next.
            cursors = cursors[len(batch) :] + cursors[: len(batch)]

    async def _patiently(self, look: Callable[[], T]) -> T:
        """Without a descriptor to be had there is nothing to be said of a file: it is tried again."""
        patience = time.monotonic() + SHORTAGE_S
        while True:
            try:
                return await self._in_pool(look)
            except OSError as error:
                if time.monotonic() >= patience:
                    what = f"node {self._reader._node_id}: the log files to open"
                    raise LimitExceeded(what, f"this moment ({error.strerror})") from None
            await asyncio.sleep(SHORTAGE_PAUSE_S)

    def _close_round(self, number: int) -> None:
        """Forget a round that is complete, so that a run of a thousand rounds costs no more than one."""
        self._closed_round = number
        for key in [key for key, cursor in self._cursors.items() if cursor.log.round == number]:
            watch = self._watches.pop(self._cursors.pop(key).path, None)
            if watch is not None:
                self._unwatch(watch)

    def _check_found(self) -> None:
        request = self._request
        if not self._found_any and (request.ranks or request.role or request.round):
            ranks = ", ".join(map(str, request.ranks))
            raise LogNotFound(request.run_id, ranks, request.role, request.round)

    async def _wait(self, status: RunStatus | None) -> None:
        """Until a file grew, the run changed, a held line's patience ends, or a while has passed."""
        revision = status.revision if status else 0
        if self._change is None or self._change.done():
            waiting = self._source.wait_change(self._request.run_id, self._incarnation, revision)
            self._change = asyncio.ensure_future(waiting)
            self._change.add_done_callback(self._on_change)
        held = any(cursor.held_since is not None for cursor in self._cursors.values())
        await asyncio.sleep(PASS_INTERVAL)
        with suppress(asyncio.TimeoutError):
            await within(PATIENCE if held else LOOK_INTERVAL, self._wake.wait())
        self._wake.clear()

    def _on_change(self, change: asyncio.Future[object]) -> None:
        if not change.cancelled():
            # A run that is forgotten raises here; the next look finds that out by itself.
            change.exception()
            self._wake.set()

    def _in_pool(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> asyncio.Future[T]:
        if self._reader._closed:
            raise _Closed
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._reader._pool, partial(call, *arguments, **named))

    def _unwatch(self, watch: int) -> None:
        # Not waited for: whoever reads, or no longer does, has nothing to learn from it.
        if not self._reader._closed:
            self._reader._pool.submit(self._reader._watcher.remove, watch, self._wake)


def _why(status: RunStatus | None) -> str:
    if status is None:
        return "the run is forgotten"
    return f"the run is {status.phase.value}" if status.phase in TERMINAL else "all that there is was read"
