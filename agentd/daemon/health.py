"""Keeps the health book true: the daemon's own life, whether it accepts runs, and every run's changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final, Protocol

from agentd.api.types import RunStatus, StreamEnd
from agentd.rpc.health_book import AGENT, DAEMON, RENDEZVOUS, Health, HealthBook

log = logging.getLogger("agentd.daemon")

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at what no run's change tells, such as a journal that fell behind."""


class HealthFacts(Protocol):
    """The part of the registry that health is made of."""

    @property
    def accepting(self) -> bool: ...

    def watch(
        self, run_id: str, incarnation: int, after_revision: int
    ) -> AsyncIterator[RunStatus | StreamEnd]: ...


class HealthKeeper:
    """One task for all names and all who watch them."""

    def __init__(self, book: HealthBook, facts: HealthFacts) -> None:
        self._book = book
        self._facts = facts
        self._serving = False

    def serving(self, serving: bool) -> None:
        """The daemon serves, or it begins to go away."""
        self._serving = serving
        self._refresh()

    async def keep(self) -> None:
        """Run until cancelled."""
        await asyncio.gather(self._look_around(), self._follow_runs())

    async def _look_around(self) -> None:
        while True:
            self._refresh()
            await asyncio.sleep(LOOK_INTERVAL)

    async def _follow_runs(self) -> None:
        while True:
            async for event in self._facts.watch("", 0, 0):
                if isinstance(event, RunStatus):
                    self._book.run_changed(event.run_id)
                self._refresh()
            # The registry ends it when it drains; health is told to the last moment.
            await asyncio.sleep(LOOK_INTERVAL)

    def _refresh(self) -> None:
        alive = Health.SERVING if self._serving else Health.NOT_SERVING
        accepting = Health.SERVING if self._serving and self._facts.accepting else Health.NOT_SERVING
        self._book.set({DAEMON: alive, AGENT: accepting, RENDEZVOUS: alive})
