"""The newest snapshot of every run, and those who watch. A watcher costs no more than the runs there are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, TypeAlias

from agentd.api.errors import RunNotFound
from agentd.api.types import TERMINAL, RunStatus, StreamEnd, StreamEndCause

RunKey: TypeAlias = tuple[str, int]
"""Run id and incarnation."""

BATCH: Final = 25
BATCH_EACH: Final = 0.01
"""Seconds between two batches of watchers that are told of a change. One takes a fifth of a millisecond: a
thousand, told at once, would hold up all else that agentd has to do, the work of the change itself first."""


class Board:
    """Snapshots by run. A later one replaces the earlier: a slow reader skips some, never the last."""

    def __init__(self, node_id: str, first_revision: int = 0) -> None:
        """`first_revision` is above all that an earlier agentd gave out, so that watchers can resume."""
        self._node_id = node_id
        self._revision = first_revision
        self._statuses: dict[RunKey, RunStatus] = {}
        self._newest: dict[str, int] = {}
        self._watchers: dict[_Watcher, None] = {}
        self._turns = _Turns()
        self._listeners: list[Callable[[str], object]] = []

    def on_change(self, listener: Callable[[str], object]) -> None:
        """Call `listener(run_id)` after each change. It must not block."""
        self._listeners.append(listener)

    def publish(self, status: RunStatus) -> RunStatus:
        """Show a snapshot; it gets the next revision."""
        self._revision += 1
        status = replace(status, revision=self._revision)
        key = status.run_id, status.incarnation
        self._statuses[key] = status
        self._newest[status.run_id] = max(status.incarnation, self._newest.get(status.run_id, 0))
        self._turns.give([watcher for watcher in self._watchers if watcher.notice(key)])
        for listener in self._listeners:
            listener(status.run_id)
        return status

    def forget(self, key: RunKey) -> None:
        """Show a run no longer."""
        self._statuses.pop(key, None)
        if self._newest.get(key[0]) == key[1]:
            del self._newest[key[0]]

    def get(self, run_id: str, incarnation: int = 0) -> RunStatus:
        """The snapshot of a run, of its newest incarnation if none is named. Raises `RunNotFound`."""
        status = self._statuses.get((run_id, incarnation or self._newest.get(run_id, 0)))
        if status is None:
            raise RunNotFound(run_id, self._node_id)
        return status

    def newest(self, run_id: str) -> RunStatus | None:
        """The snapshot of the newest incarnation; None if the run is not known."""
        return self._statuses.get((run_id, self._newest.get(run_id, 0)))

    def all(self, include_ended: bool) -> list[RunStatus]:
        """Every run, in an order that stays: by start, then by name."""
        shown = (s for s in self._statuses.values() if include_ended or s.phase not in TERMINAL)
        return sorted(shown, key=lambda status: (status.started_at, status.run_id, status.incarnation))

    async def watch(
        self, run_id: str, incarnation: int, after_revision: int
    ) -> AsyncIterator[RunStatus | StreamEnd]:
        """Snapshots newer than `after_revision`: those there are, then each that comes.

        With a run id, of that incarnation only, ended after its last; without, of every run and without end.
        """
        key = None
        if run_id:
            status = self.get(run_id, incarnation)
            key = status.run_id, status.incarnation
        with self._watcher(key) as watcher:
            watcher.pending.update(k for k in self._statuses if key in (None, k))
            while True:
                for found in watcher.take():
                    newer = self._statuses.get(found)
                    if newer is None:
                        continue
                    if newer.revision > after_revision:
                        yield newer
                    if key is not None and newer.phase in TERMINAL:
                        yield StreamEnd(cause=StreamEndCause.FINISHED, reason=newer.reason)
                        return
                await watcher.wait()

    async def wait_change(self, run_id: str, incarnation: int, revision: int) -> RunStatus:
        """The snapshot of a run once it is newer than `revision`. Raises `RunNotFound`."""
        status = self.get(run_id, incarnation)
        with self._watcher((status.run_id, status.incarnation), urgent=True) as watcher:
            while (status := self.get(status.run_id, status.incarnation)).revision <= revision:
                await watcher.wait()
                watcher.take()
        return status

    @contextlib.contextmanager
    def _watcher(self, key: RunKey | None, *, urgent: bool = False) -> Iterator[_Watcher]:
        watcher = _Watcher(key, urgent=urgent)
        self._watchers[watcher] = None
        try:
            yield watcher
        finally:
            del self._watchers[watcher]
            self._turns.leave(watcher)


class _Turns:
    """Who is still to be woken: a few now, the others a few at a time."""

    def __init__(self) -> None:
        self._waiting: dict[_Watcher, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def give(self, watchers: Iterable[_Watcher]) -> None:
        """Wake each of them, now or in turn. Who waits already keeps its place."""
        self._waiting.update(dict.fromkeys(watchers))
        if self._timer is None:
            self._next()

    def leave(self, watcher: _Watcher) -> None:
        """It watches no more."""
        self._waiting.pop(watcher, None)

    def _next(self) -> None:
        self._timer = None
        for watcher in list(itertools.islice(self._waiting, BATCH)):
            del self._waiting[watcher]
            watcher.wake()
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(BATCH_EACH, self._next)


class _Watcher:
    """Which runs have changed since somebody looked."""

    def __init__(self, key: RunKey | None, *, urgent: bool) -> None:
        """`urgent`: part of agentd itself, which does not take turns with those that look on."""
        self._key = key
        self._urgent = urgent
        self._event = asyncio.Event()
        self.pending: set[RunKey] = set()

    def notice(self, key: RunKey) -> bool:
        """Whether that is news for one that is to be woken in turn."""
        if self._key not in (None, key):
            return False
        self.pending.add(key)
        if self._urgent:
            self.wake()
        return not self._urgent

    def wake(self) -> None:
        self._event.set()

    def take(self) -> list[RunKey]:
        self._event.clear()
        taken, self.pending = sorted(self.pending), set()
        return taken

    async def wait(self) -> None:
        await self._event.wait()
