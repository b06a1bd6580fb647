"""Looks each two seconds at what runs out: room and inodes of the state directory's disk, descriptors, time.

The disk is asked in a thread of its own, with a patience: one that hangs is a condition, not a hang.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection
from typing import Final

from agentd.api.patience import next_beat, within
from agentd.core.conditions import Condition, DiskFacts, of_disk
from agentd.daemon.clock import ClockKeeper
from agentd.daemon.threads import in_own_thread
from agentd.groups.conditions import Conditions
from agentd.procs.resources import SHORTAGES, can_start_thread, disk_facts, missing_descriptors

LOOK_INTERVAL: Final = 2.0
"""Seconds between two looks. Each takes a thread, and with that a millisecond of an idle agentd."""
FORGIVEN_AFTER_S: Final = 60.0
"""How long a refused process is remembered when nobody tries to start another."""
PATIENCE: Final = 2.0
"""Seconds the disk has to answer."""

_log = logging.getLogger(__name__)
_OF_DISK: Final = (
    Condition.STATE_DISK_FULL,
    Condition.STATE_DISK_NO_INODES,
    Condition.STATE_DISK_READ_ONLY,
    Condition.STATE_DISK_SLOW,
    Condition.STATE_DISK_UNUSABLE,
)


class ResourceWatch:
    """Keeps the conditions of the node's resources true."""

    def __init__(self, state_dir: str, conditions: Conditions, clock: ClockKeeper | None = None) -> None:
        self._state_dir = state_dir
        self._conditions = conditions
        self._clock = clock
        self._look: asyncio.Future[DiskFacts] | None = None
        self._refused_at: float | None = None

    async def keep(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                await self.step()
            except Exception:  # noqa: BLE001 - whatever it is, the next look may do
                _log.exception("the node's resources cannot be looked at")
            await next_beat(LOOK_INTERVAL)

    async def step(self) -> None:
        """One look."""
        self._conditions.put(Condition.TOO_MANY_FILES, missing_descriptors())
        if self._clock is not None:
            self._clock.step()
        self._look_at_processes()
        await self._look_at_disk()

    def _look_at_processes(self) -> None:
        """A refusal is raised by whoever was refused; here it ends when nobody tries and all seems well."""
        if Condition.CANNOT_FORK.value not in self._conditions.details:
            self._refused_at = None
            return
        now = time.monotonic()
        self._refused_at = now if self._refused_at is None else self._refused_at
        if now - self._refused_at >= FORGIVEN_AFTER_S and can_start_thread():
            self._conditions.put(Condition.CANNOT_FORK, "")

    async def _look_at_disk(self) -> None:
        if self._look is None or self._look.done():
            self._look = in_own_thread(lambda: disk_facts(self._state_dir), "agentd-disk-look")
        try:
            facts = await within(PATIENCE, asyncio.shield(self._look))
        except asyncio.TimeoutError:
            # What was wrong with it may still be.
            slow = f"the disk of {self._state_dir} did not answer in {PATIENCE:g} s"
            self._conditions.put(Condition.STATE_DISK_SLOW, slow)
        except OSError as error:
            if error.errno in SHORTAGES:
                return
            problem = os.strerror(error.errno or 0).lower()
            self._tell({Condition.STATE_DISK_UNUSABLE: f"{self._state_dir}: {problem}"})
        else:
            self._tell(dict(of_disk(facts, self._state_dir, self._standing())))

    def _standing(self) -> Collection[Condition]:
        return [condition for condition in _OF_DISK if condition.value in self._conditions.details]

    def _tell(self, found: dict[Condition, str]) -> None:
        for condition in _OF_DISK:
            self._conditions.put(condition, found.get(condition, ""))
