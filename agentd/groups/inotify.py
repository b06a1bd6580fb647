"""Wakes readers when their files grow: one inotify descriptor for all, on the event loop.

A hint, never the truth: where the kernel refuses a watch (limits, odd file systems) the reader still
looks once in a while by itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

from agentd.procs.inotify import Inotify


class FileWatcher:
    """Sets events when files are written. `add` and `remove` may wait for the disk: call them in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inotify = Inotify()
        self._lock = threading.Lock()
        # By watch descriptor. Written under the lock and only by replacing a value; read by the loop without.
        self._events: dict[int, frozenset[asyncio.Event]] = {}
        if self._inotify.fileno() >= 0:
            loop.add_reader(self._inotify.fileno(), self._read)

    def add(self, path: str, event: asyncio.Event) -> int | None:
        """Have `event` set when the file is written. None: it cannot be watched."""
        with self._lock:
            watch = self._inotify.add(path)
            if watch is None:
                return None
            self._events[watch] = self._events.get(watch, frozenset()) | {event}
            return watch

    def remove(self, watch: int, event: asyncio.Event) -> None:
        """Undo one `add`."""
        with self._lock:
            remaining = self._events.get(watch, frozenset()) - {event}
            if remaining:
                self._events[watch] = remaining
            elif self._events.pop(watch, None) is not None:
                self._inotify.remove(watch)

    def close(self) -> None:
        """Watch nothing any more. Called on the loop."""
        with self._lock:
            if self._inotify.fileno() >= 0:
                self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._events.clear()

    @property
    def watched(self) -> Mapping[int, frozenset[asyncio.Event]]:
        """What is watched, by watch descriptor."""
        return self._events

    def _read(self) -> None:
        for watch, dropped in self._inotify.read():
            # Also when the file is gone: the reader finds that out.
            for event in self._events.get(watch, ()):
                event.set()
            if dropped:
                self._events.pop(watch, None)
