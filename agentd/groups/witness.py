"""agentd's own eyes on the workers of a group: their host tells of each end, unless it is stopped or hangs.

What has ended and is not told of for some seconds accuses the host: it is woken first, for somebody may only
have stopped it, and then counts as hung. So does an end that decides the round, if the host does not say what
follows from it. Counted in steps of the loop's own time, so that an agentd that was frozen itself reads what
its host had told long ago before it judges.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection

from agentd.api.types import WorkerState
from agentd.procs.identity import ProcessIdentity
from agentd.procs.pidfd import open_process

STEP_S = 1.0
VERDICT = 0
"""Stands for the host's word on the round, where a pid stands for its word of a worker's end."""
WAKE_AFTER = 4
"""Steps after the end of a worker until its silent host is woken."""
HUNG_AFTER = 8
"""Steps until it counts as hung."""


class WorkerWitness:
    """Watches the workers of one round at a time. Used on the event loop."""

    def __init__(self, wake: Callable[[], object], accuse: Callable[[int], object]) -> None:
        """`wake()` a host that may be stopped; `accuse(pid)` one that does not tell of that worker's end.

        `accuse(VERDICT)` one that does not say what follows from the ends it has told.
        """
        self._wake = wake
        self._accuse = accuse
        self._workers: dict[int, ProcessIdentity] = {}
        self._pidfds: dict[int, int] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        """By pid, or `VERDICT`."""
        self._running: set[int] = set()
        """Those of whose end the host has not told."""
        self._well = True
        """Whether all that ended did so with success."""

    @property
    def workers(self) -> frozenset[ProcessIdentity]:
        """Those of the round, dead or alive."""
        return frozenset(self._workers.values())

    def watch(
        self, workers: Collection[ProcessIdentity], ended: Collection[int] = (), *, well: bool = True
    ) -> None:
        """These are the workers now, and no others. `ended`: those of which no end is to be told any more.

        `well`: whether all that have ended did so with success.
        """
        self.clear()
        self._workers = {worker.pid: worker for worker in workers}
        self._running = self._workers.keys() - set(ended)
        self._well = well
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

    def told(self, pid: int, end: WorkerState, doubt_s: float = 0.0) -> None:
        """The host has told of this worker's end. A failure, or the last success, decides the round.

        `doubt_s`: how much longer it may take until the host says what follows.
        """
        self._running.discard(pid)
        self._well = self._well and end is WorkerState.SUCCEEDED
        self._unwatch(pid)
        self._no_longer_due(pid)
        if end is WorkerState.FAILED or (self._well and not self._running):
            self._await_verdict(doubt_s)

    def verdict_told(self) -> None:
        """The host has said that the round failed, or why it ends it."""
        self._no_longer_due(VERDICT)

    def clear(self) -> None:
        """There are no workers any more."""
        for key in (*self._workers, VERDICT):
            self._unwatch(key)
            self._no_longer_due(key)
        self._workers = {}

    def _no_longer_due(self, key: int) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def _ended(self, pid: int) -> None:
        self._unwatch(pid)
        self._await_word(pid, 0)

    def _await_verdict(self, doubt_s: float) -> None:
        if VERDICT not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[VERDICT] = loop.call_later(doubt_s, self._await_word, VERDICT, 0)

    def _await_word(self, key: int, step: int) -> None:
        if step == WAKE_AFTER:
            self._wake()
        if step == HUNG_AFTER:
            self._timers.pop(key, None)
            self._accuse(key)
            return
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(STEP_S, self._await_word, key, step + 1)

    def _unwatch(self, pid: int) -> None:
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
