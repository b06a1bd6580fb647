"""Tells when files are written: inotify through ctypes.

A hint, never the truth: where the kernel refuses (limits, odd file systems) callers look once in a while.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import final

_IN_MODIFY = 0x2
_IN_IGNORED = 0x8000
_HEADER = struct.Struct("iIII")


@final
class Inotify:
    """One inotify descriptor. Not safe between threads by itself, but for `read` beside the others."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """To wait on until there is something to `read`; negative when closed or refused by the kernel."""
        return self._fd

    def add(self, path: str) -> int | None:
        """Watch a file for writes; the same file has the same watch. `None`: it cannot be watched."""
        if self._fd < 0:
            return None
        watch = int(self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY))
        return watch if watch >= 0 else None

    def remove(self, watch: int) -> None:
        """Undo `add`; unknown watches are ignored."""
        if self._fd >= 0:
            self._libc.inotify_rm_watch(self._fd, watch)

    def read(self) -> list[tuple[int, bool]]:
        """What happened, without waiting: watches, and whether the kernel dropped them (the file is gone)."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return []
        events = []
        position = 0
        while position < len(data):
            watch, mask, _, name_length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + name_length
            events.append((watch, bool(mask & _IN_IGNORED)))
        return events

    def close(self) -> None:
        """Watch nothing any more. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
