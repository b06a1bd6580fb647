"""Wakes whoever waits for processes that are no children of anybody here: by pidfds, where there are any."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from agentd.procs.identity import ProcessIdentity
from agentd.procs.pidfd import open_process
from agentd.procs.procfs import ProcessStat
from agentd.procs.waiter import Waiter

MOST_WATCHED = 64
"""Of more than these the rest is seen when they are looked for again."""


class Ends:
    """Calls back from the waiter for each end of a process that is watched."""

    def __init__(self, waiter: Waiter, on_end: Callable[[], object]) -> None:
        self._waiter = waiter
        self._on_end = on_end
        self._watched: dict[ProcessIdentity, int] = {}

    def watch(self, stats: Iterable[ProcessStat]) -> None:
        """Watch these too, as far as descriptors go round."""
        for stat in stats:
            identity = ProcessIdentity(stat.pid, stat.start_time)
            if identity in self._watched:
                continue
            if len(self._watched) >= MOST_WATCHED:
                return
            try:
                fd = open_process(identity)
            except OSError:
                # It has ended, or there is no descriptor: whoever waits looks again in any case.
                continue
            if fd is not None:
                self._watched[identity] = fd
                self._waiter.add(fd, lambda identity=identity: self._ended(identity))  # type: ignore[misc]

    def close(self) -> None:
        """Watch none any more."""
        for identity in tuple(self._watched):
            self._forget(identity)

    def _ended(self, identity: ProcessIdentity) -> None:
        self._forget(identity)
        self._on_end()

    def _forget(self, identity: ProcessIdentity) -> None:
        fd = self._watched.pop(identity, None)
        if fd is not None:
            self._waiter.remove(fd)
            os.close(fd)
