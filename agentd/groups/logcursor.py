"""Which log files a request means, where in each to start, and how far to go. No waiting and no reading of
more than it is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from agentd.api.channel import CHUNK_LIMIT
from agentd.api.types import LogChunk, LogsRequest, LogStream

PATIENCE: Final = 0.2
"""Seconds an unfinished line is held back for its end."""
BATCH: Final = 4 * CHUNK_LIMIT
"""Bytes read at once for one reader."""
_BLOCK: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLog:
    """The folder with the output of one worker in one round."""

    role: str
    round: int
    local_rank: int
    rank: int
    directory: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What a request means among the logs there are, fixed when it begins."""

    request: LogsRequest
    first_round: int
    last_round: int | None
    """None: every later one too."""

    @classmethod
    def begin(cls, request: LogsRequest, logs: Sequence[WorkerLog]) -> Selection:
        """The rounds that are meant; `logs` are those at the beginning."""
        if request.round and not request.all_rounds:
            return cls(request, request.round, request.round)
        newest = newest_round(logs)
        if request.all_rounds:
            first = 0
        else:
            # What was being read when the connection broke may have been an older round.
            first = min([newest, *(position.round for position in request.resume)])
        return cls(request, first, None if request.follow else newest)

    def of(self, logs: Sequence[WorkerLog]) -> list[tuple[WorkerLog, LogStream]]:
        """The files that are meant, in order of rounds."""
        request = self.request
        streams = request.streams or tuple(LogStream)
        meant = [
            log
            for log in logs
            if log.round >= self.first_round
            and (self.last_round is None or log.round <= self.last_round)
            and (not request.ranks or log.rank in request.ranks)
            and (not request.role or log.role == request.role)
        ]
        meant.sort(key=lambda log: (log.round, log.role, log.local_rank))
        return [(log, stream) for log in meant for stream in LogStream if stream in streams]

    def resumed_at(self, log: WorkerLog, stream: LogStream) -> int | None:
        """The offset the caller wants to go on from."""
        for position in self.request.resume:
            if (position.role, position.round, position.local_rank, position.stream) == (
                log.role,
                log.round,
                log.local_rank,
                stream,
            ):
                return position.offset
        return None


def newest_round(logs: Sequence[WorkerLog]) -> int:
    """0 if there is none."""
    return max((log.round for log in logs), default=0)


@dataclass(slots=True)
class Cursor:
    """How far one file has been given out."""

    log: WorkerLog
    stream: LogStream
    offset: int = 0
    limit: int | None = None
    """Bytes that are read at most. None: all that come."""
    held_since: float | None = None
    path: str = field(init=False)

    def __post_init__(self) -> None:
        self.path = os.path.join(self.log.directory, f"{self.stream.value}.log")

    def room(self) -> int:
        """Bytes of the next read."""
        return CHUNK_LIMIT if self.limit is None else max(0, min(CHUNK_LIMIT, self.limit - self.offset))

    def take(self, data: bytes, *, final: bool, now: float, node_id: str) -> LogChunk | None:
        """The chunk for what was read at `offset`, up to a line's end where it can be.

        A line without an end is held back for a moment, unless nothing can follow it.
        """
        piece = data[: self._cut(data, final=final, now=now)]
        if not piece:
            return None
        self.held_since = None
        start, self.offset = self.offset, self.offset + len(piece)
        return LogChunk(
            role=self.log.role,
            round=self.log.round,
            rank=self.log.rank,
            local_rank=self.log.local_rank,
            stream=self.stream,
            offset=start,
            data=piece,
            node_id=node_id,
        )

    def _cut(self, data: bytes, *, final: bool, now: float) -> int:
        line_end = data.rfind(b"\n") + 1
        if line_end or not data:
            return line_end
        if final or len(data) >= CHUNK_LIMIT:
            return len(data)
        if self.held_since is None:
            self.held_since = now
        return len(data) if now - self.held_since >= PATIENCE else 0


def read_batch(places: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """What stands at each (path, offset, size), until a batch is full. A file that is not there is empty."""
    found: list[bytes] = []
    room = BATCH
    for path, offset, size in places:
        if room <= 0:
            break
        found.append(_read(path, offset, size))
        room -= len(found[-1])
    return found


def file_size(path: str) -> int:
    """0 if it is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def tail_offset(path: str, lines: int) -> int:
    """Where the last `lines` lines begin. A last line without an end counts as one."""
    position = size = file_size(path)
    if not lines:
        return size
    # The newline at the very end closes the last line; it begins none.
    ends_wanted = lines + 1 if size and _read(path, size - 1, 1) == b"\n" else lines
    while position > 0:
        start = max(0, position - _BLOCK)
        block = _read(path, start, position - start)
        ends = block.count(b"\n")
        if ends >= ends_wanted:
            return start + _nth_last(block, ends_wanted) + 1
        ends_wanted -= ends
        position = start
    return 0


def _nth_last(block: bytes, count: int) -> int:
    index = len(block)
    for _ in range(count):
        index = block.rindex(b"\n", 0, index)
    return index


def _read(path: str, offset: int, size: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, offset)
    except (OSError, OverflowError):  # an offset that a caller made up
        return b""
    finally:
        os.close(fd)
