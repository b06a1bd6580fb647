"""agentd's own eyes on the workers of a group: their host tells of each end, unless it is stopped or hangs.

What has ended and is not told of for some seconds accuses the host: it is woken first, for somebody may only
have stopped it, and then counts as hung. Counted in steps of the loop's own time, so that an agentd that was
frozen itself reads what its host had told long ago before it judges.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection

from agentd.procs.identity import ProcessIdentity
from agentd.procs.pidfd import open_process

STEP_S = 1.0
WAKE_AFTER = 4
"""Steps after the end of a worker until its silent host is woken."""
HUNG_AFTER = 8
"""Steps until it counts as hung."""


class WorkerWitness:
    """Watches the workers of one round at a time. Used on the event loop."""

    def __init__(self, wake: Callable[[], object], accuse: Callable[[int], object]) -> None:
        """`wake()` a host that may be stopped; `accuse(pid)` one that does not tell of that worker's end."""
        self._wake = wake
        self._accuse = accuse
        self._workers: dict[int, ProcessIdentity] = {}
        self._pidfds: dict[int, int] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    @property
    def workers(self) -> frozenset[ProcessIdentity]:
        """Those of the round, dead or alive."""
        return frozenset(self._workers.values())

    def watch(self, workers: Collection[ProcessIdentity], ended: Collection[int] = ()) -> None:
        """These are the workers now, and no others. `ended`: those of which no end is to be told any more."""
        self.clear()
        self._workers = {worker.pid: worker for worker in workers}
        loop = asyncio.get_running_loop()
        for worker in workers:
            if worker.pid in ended:
                continue
            try:
                pidfd = open_process(worker)
            except (ProcessLookupError, OSError):
                # Gone before we looked, or no descriptor to spare: the host tells, as it does of all.
                continue
            if pidfd is not None:
                self._pidfds[worker.pid] = pidfd
                loop.add_reader(pidfd, self._ended, worker.pid)

    def told(self, pid: int) -> None:
        """The host has told of this worker's end."""
        self._unwatch(pid)
        if timer := self._timers.pop(pid, None):
            timer.cancel()

    def clear(self) -> None:
        """There are no workers any more."""
        for pid in list(self._workers):
            self.told(pid)
        self._workers = {}

    def _ended(self, pid: int) -> None:
        self._unwatch(pid)
        self._await_word(pid, 0)

    def _await_word(self, pid: int, step: int) -> None:
        if step == WAKE_AFTER:
            self._wake()
        if step == HUNG_AFTER:
            self._timers.pop(pid, None)
            self._accuse(pid)
            return
        loop = asyncio.get_running_loop()
        self._timers[pid] = loop.call_later(STEP_S, self._await_word, pid, step + 1)

    def _unwatch(self, pid: int) -> None:
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
