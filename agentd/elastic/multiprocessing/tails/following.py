"""Reads a growing log file, once and in order, from before it exists until it is complete."""

from __future__ import annotations

import codecs
import logging
import os

from agentd.elastic.multiprocessing.tails.lines import LineCutter, LineFilter, Piece

log = logging.getLogger(__name__)

CHUNK = 1 << 16


class Follower:
    """One file. Trouble with it is one warning, and the file is then taken for complete."""

    def __init__(self, path: str, keep: LineFilter | None = None) -> None:
        self.path = path
        self._cutter = LineCutter(keep)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._fd = -1
        self._position = 0
        self._end: int | None = None  # where the file is complete, once that is known
        self._broken = False

    def opened(self) -> bool:
        """Whether the file is there and being read."""
        if self._fd < 0 and not self._broken:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                return False
            except (OSError, ValueError) as error:
                self._break(error)
        return self._fd >= 0

    def read(self) -> list[Piece] | None:
        """A portion of what is new; `None` when there is nothing new. Never waits."""
        if not self.opened():
            return None
        try:
            data = self._read_some()
        except BlockingIOError:
            return None
        except OSError as error:
            self._break(error)
            return None
        return self._cutter.feed(self._decoder.decode(data)) if data else None

    def seal(self) -> None:
        """Take the file for complete as it is now, whoever still writes to it."""
        if self.opened():
            self._end = os.fstat(self._fd).st_size
        else:
            self.close()

    def finish(self) -> list[Piece]:
        """The unfinished end of the file; reads nothing."""
        return self._cutter.feed(self._decoder.decode(b"", final=True)) + self._cutter.finish()

    def close(self) -> None:
        """Give the descriptor back. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._broken = True

    def _read_some(self) -> bytes:
        room = CHUNK if self._end is None else min(CHUNK, self._end - self._position)
        if room <= 0:
            return b""
        data = os.read(self._fd, room)
        if not data and os.fstat(self._fd).st_size < self._position:
            # Somebody cut the file short to save space: it goes on from its beginning.
            self._position = os.lseek(self._fd, 0, os.SEEK_SET)
            data = os.read(self._fd, room)
        self._position += len(data)
        return data

    def _break(self, error: Exception) -> None:
        log.warning("%s is followed no longer: %s", self.path, error)
        self.close()
