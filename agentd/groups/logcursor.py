"""Which log files a request means, where in each to start, and how far to go. No waiting and no reading of
more than it is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import field
from typing import Final

from agentd.api.channel import CHUNK_LIMIT
from agentd.api.types import LogChunk, LogGap, LogsRequest, LogStream
from agentd.procs.holes import first_data
from agentd.procs.resources import SHORTAGES
from agentd.quickdata import dataclass

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

    def skip(self, piece: Piece, node_id: str) -> LogGap | None:
        """Go on where `piece` stands; what was lost, if it stands elsewhere."""
        if piece.offset == self.offset:
            return None
        start, self.offset = self.offset, piece.offset
        self.held_since = None
        return LogGap(
            role=self.log.role,
            round=self.log.round,
            rank=self.log.rank,
            local_rank=self.log.local_rank,
            stream=self.stream,
            offset=start,
            size=max(0, piece.offset - start),
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


@dataclass(frozen=True, slots=True)
class Piece:
    """What stands in a file at an offset, or where the next that stands is."""

    offset: int
    """Another one than was asked for: what was there is gone. A smaller one: the file begins anew."""
    data: bytes = b""


def read_batch(places: Sequence[tuple[str, int, int]]) -> list[Piece]:
    """What stands at each (path, offset, size), until a batch is full. A file that is not there is empty.

    Raises `OSError` when there is no descriptor or memory to read with.
    """
    found: list[Piece] = []
    room = BATCH
    for path, offset, size in places:
        if room <= 0:
            break
        found.append(_read(path, offset, size))
        room -= len(found[-1].data)
    return found


def file_size(path: str) -> int:
    """0 if it is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def tail_offset(path: str, lines: int) -> int:
    """Where the last `lines` lines begin, of those still there. A last line without an end is one."""
    position = size = file_size(path)
    if not lines:
        return size
    # The newline at the very end closes the last line; it begins none.
    ends_wanted = lines + 1 if size and _read(path, size - 1, 1).data == b"\n" else lines
    while position > 0:
        wanted = max(0, position - _BLOCK)
        start, block = _standing(path, wanted, position)
        ends = block.count(b"\n")
        if ends >= ends_wanted:
            return start + _nth_last(block, ends_wanted) + 1
        if start != wanted:
            return start
        ends_wanted -= ends
        position = start
    return 0


def _standing(path: str, start: int, end: int) -> tuple[int, bytes]:
    """What stands between two offsets, and where that begins: a hole may have taken the first part."""
    piece = _read(path, start, end - start)
    if piece.offset <= start:
        return start, piece.data
    start = min(piece.offset, end)
    return start, _read(path, start, end - start).data


def _nth_last(block: bytes, count: int) -> int:
    index = len(block)
    for _ in range(count):
        index = block.rindex(b"\n", 0, index)
    return index


def _read(path: str, offset: int, size: int) -> Piece:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return Piece(offset)
    try:
        return _read_open(fd, offset, size)
    except (OSError, OverflowError):  # an offset that a caller made up
        return Piece(offset)
    finally:
        os.close(fd)


def _read_open(fd: int, offset: int, size: int) -> Piece:
    data = os.pread(fd, size, offset)
    if not data and size:
        end = os.fstat(fd).st_size
        return Piece(0 if end < offset else offset)
    # Asked after it was read: a hole that was made meanwhile gives zeros, and always begins before them.
    return Piece(offset, data) if (there := first_data(fd, offset)) == offset else Piece(there)
