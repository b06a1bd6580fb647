"""What all runs and worker groups of a node share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from agentd.groups.conditions import Conditions
from agentd.groups.journal import Journal
from agentd.groups.stuck import StuckBook
from agentd.host.door import HostDoor
from agentd.quickdata import dataclass

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facilities:
    """Made once, by the registry."""

    journal: Journal
    door: HostDoor
    state_dir: str
    disk: Executor
    """For what may hang with a disk."""
    sweeps: Executor
    """For sweeps, which take seconds when something does not want to die."""
    host_mode: str = "stop"
    """What hosts do when their agentd is gone: see `HostSpec.mode`."""
    conditions: Conditions
    """What degrades the node."""
    stuck: StuckBook
    """What SIGKILL did not end."""

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Do in a thread what may hang with a disk."""
        return await asyncio.get_running_loop().run_in_executor(self.disk, work)
