"""What is healthy, by name. Knows nothing of streams; `agentd.rpc.health` shows it to the world.

Names: `""` is the daemon, the services' names are what it can do, `agentd.run/<run_id>[/<role>]` are
worker groups.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Mapping
from typing import Final, Protocol

from agentd.api.errors import RunNotFound
from agentd.api.types import RunStatus

DAEMON: Final = ""
AGENT: Final = "agentd.v1.AgentService"
RENDEZVOUS: Final = "agentd.v1.RendezvousService"
RUN_PREFIX: Final = "agentd.run/"


class Health(enum.IntEnum):
    """grpc.health.v1's ServingStatus; the unknown is `None` here."""

    SERVING = 1
    NOT_SERVING = 2


class RunHealth(Protocol):
    """Which worker groups are well."""

    def health(self, run_id: str, role: str | None) -> bool: ...

    def runs(self, include_ended: bool) -> list[RunStatus]: ...


class HealthBook:
    """Answers for every name, and wakes whoever waits for one to change."""

    def __init__(self, runs: RunHealth) -> None:
        self._runs = runs
        self._services: dict[str, Health] = dict.fromkeys((DAEMON, AGENT, RENDEZVOUS), Health.NOT_SERVING)
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def set(self, healths: Mapping[str, Health]) -> None:
        """Services' health from now on."""
        self._services.update(healths)
        for name in healths:
            self._wake(name)

    def run_changed(self, run_id: str) -> None:
        """Something about this run's groups may be different now."""
        self._wake(f"{RUN_PREFIX}{run_id}")

    def check(self, name: str) -> Health | None:
        """The health of a name; None if nothing bears it."""
        if not name.startswith(RUN_PREFIX):
            return self._services.get(name)
        run_id, _, role = name.removeprefix(RUN_PREFIX).partition("/")
        try:
            return Health.SERVING if self._runs.health(run_id, role or None) else Health.NOT_SERVING
        except RunNotFound:
            return None

    def names(self) -> list[str]:
        """Services, live runs and their groups here."""
        names = list(self._services)
        for run in self._runs.runs(include_ended=False):
            name = f"{RUN_PREFIX}{run.run_id}"
            roles = {group.role for node in run.nodes for group in node.groups}
            names += [name, *(f"{name}/{role}" for role in sorted(roles) if self.check(f"{name}/{role}"))]
        return names

    async def watch(self, name: str) -> AsyncIterator[Health | None]:
        """The health now, then each time it is another. What came and went in between is skipped."""
        topic = _topic(name)
        changed = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(changed)
        try:
            shown = self.check(name)
            yield shown
            while True:
                await changed.wait()
                changed.clear()
                now = self.check(name)
                if now is not shown:
                    shown = now
                    yield shown
        finally:
            self._waiting[topic].discard(changed)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def _wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()


def _topic(name: str) -> str:
    """What wakes the watchers of a name: all names of one run change together."""
    return "/".join(name.split("/", 2)[:2]) if name.startswith(RUN_PREFIX) else name
