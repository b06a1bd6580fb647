"""Keeps the services' health true: the daemon's own life, and whether it accepts runs."""

from __future__ import annotations

from typing import Final, Protocol

from agentd.api.patience import next_beat
from agentd.rpc.health_book import AGENT, DAEMON, RENDEZVOUS, Health, HealthBook

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at what nobody tells of, such as a journal that fell behind."""


class HealthFacts(Protocol):
    """The part of the registry that health is made of."""

    @property
    def accepting(self) -> bool: ...


class HealthKeeper:
    """Writes the book; the runs' names there answer for themselves."""

    def __init__(self, book: HealthBook, facts: HealthFacts) -> None:
        self._book = book
        self._facts = facts
        self._serving = False

    def serving(self, serving: bool) -> None:
        """The daemon serves, or it begins to go away."""
        self._serving = serving
        self.refresh()

    async def keep(self) -> None:
        """Run until cancelled."""
        while True:
            self.refresh()
            await next_beat(LOOK_INTERVAL)

    def refresh(self) -> None:
        """Look now: something that is not looked at often is another one."""
        alive = Health.SERVING if self._serving else Health.NOT_SERVING
        accepting = Health.SERVING if self._serving and self._facts.accepting else Health.NOT_SERVING
        self._book.set({DAEMON: alive, AGENT: accepting, RENDEZVOUS: alive})
