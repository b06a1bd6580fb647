"""The newest snapshot of every run, and those who watch. A watcher costs no more than the runs there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TypeAlias

from agentd.api.errors import RunNotFound
from agentd.api.types import TERMINAL, RunStatus, StreamEnd, StreamEndCause

RunKey: TypeAlias = tuple[str, int]
"""Run id and incarnation."""


class Board:
    """Snapshots by run. A later one replaces the earlier: a slow reader skips some, never the last."""

    def __init__(self, node_id: str, first_revision: int = 0) -> None:
        """`first_revision` is above all that an earlier agentd gave out, so that watchers can resume."""
        self._node_id = node_id
        self._revision = first_revision
        self._statuses: dict[RunKey, RunStatus] = {}
        self._newest: dict[str, int] = {}
        self._watchers: set[_Watcher] = set()
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
        for watcher in self._watchers:
            watcher.notice(key)
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
        with _Watcher(self._watchers, key) as watcher:
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
        with _Watcher(self._watchers, (status.run_id, status.incarnation)) as watcher:
            while (status := self.get(status.run_id, status.incarnation)).revision <= revision:
                await watcher.wait()
                watcher.take()
        return status


class _Watcher:
    """Which runs have changed since somebody looked."""

    def __init__(self, watchers: set[_Watcher], key: RunKey | None) -> None:
        self._watchers = watchers
        self._key = key
        self._event = asyncio.Event()
        self.pending: set[RunKey] = set()

    def notice(self, key: RunKey) -> None:
        if self._key in (None, key):
            self.pending.add(key)
            self._event.set()

    def take(self) -> list[RunKey]:
        self._event.clear()
        taken, self.pending = sorted(self.pending), set()
        return taken

    async def wait(self) -> None:
        await self._event.wait()

    def __enter__(self) -> _Watcher:
        self._watchers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchers.discard(self)
