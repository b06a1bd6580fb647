"""Wakes readers when their files grow: one inotify descriptor for all, through ctypes.

A hint, never the truth: where the kernel refuses a watch (limits, odd file systems) the reader still
looks once in a while by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Mapping

_IN_MODIFY = 0x2
_IN_IGNORED = 0x8000
_HEADER = struct.Struct("iIII")


class FileWatcher:
    """Sets events when files are written. `add` and `remove` may wait for the disk: call them in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._lock = threading.Lock()
        # By watch descriptor. Written under the lock and only by replacing a value; read by the loop without.
        self._events: dict[int, frozenset[asyncio.Event]] = {}
        if self._fd >= 0:
            loop.add_reader(self._fd, self._read)

    def add(self, path: str, event: asyncio.Event) -> int | None:
        """Have `event` set when the file is written. None: it cannot be watched."""
        with self._lock:
            if self._fd < 0:
                return None
            watch = int(self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY))
            if watch < 0:
                return None
            self._events[watch] = self._events.get(watch, frozenset()) | {event}
            return watch

    def remove(self, watch: int, event: asyncio.Event) -> None:
        """Undo one `add`."""
        with self._lock:
            remaining = self._events.get(watch, frozenset()) - {event}
            if remaining:
                self._events[watch] = remaining
            elif self._events.pop(watch, None) is not None and self._fd >= 0:
                self._libc.inotify_rm_watch(self._fd, watch)

    def close(self) -> None:
        """Watch nothing any more. Called on the loop."""
        with self._lock:
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
                os.close(self._fd)
            self._fd = -1
            self._events.clear()

    @property
    def watched(self) -> Mapping[int, frozenset[asyncio.Event]]:
        """What is watched, by watch descriptor."""
        return self._events

    def _read(self) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, 65536)
        position = 0
        while position < len(data):
            watch, mask, _, name_length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + name_length
            # Also on IGNORED, when the file is gone: the reader finds that out.
            for event in self._events.get(watch, ()):
                event.set()
            if mask & _IN_IGNORED:
                self._events.pop(watch, None)
