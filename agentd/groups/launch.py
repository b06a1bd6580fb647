"""Starts the hosts of a worker group, each under its own token, and again while something has run out."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from agentd.api.patience import within
from agentd.core.conditions import Condition
from agentd.groups import layout
from agentd.groups.facilities import Facilities
from agentd.host.handle import HostHandle, HostListener
from agentd.host.wire import HostSpec
from agentd.procs import cgroups
from agentd.procs.resources import OUT_OF_PROCESSES, SHORTAGES

PATIENCE_S = 30.0
"""How long a disk may take to let a host start, and how long it is tried when something has run out."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

_log = logging.getLogger(__name__)


class Launcher:
    """What the newest host of one group was started with, and how the next one is."""

    def __init__(self, spec: HostSpec, directory: str, facilities: Facilities, left: HostSpec | None) -> None:
        """`spec` has no token. `left`: of the host that an earlier agentd started."""
        self._spec = spec
        self._dir = directory
        self._shared = facilities
        self.token = left.token if left else ""
        self.cgroup = left.cgroup if left else ""
        """Both mark the group's processes, also those of a host that did not come up."""

    async def start(
        self, listener: HostListener, interrupted: Callable[[float], Awaitable[bool]]
    ) -> HostHandle:
        """A host. `interrupted(seconds)` pauses, and tells whether there is something else to do.

        Raises `OSError`, `SpawnError`, and `asyncio.TimeoutError` for a disk that does not answer.
        """
        self.token = secrets.token_hex(16)
        patience, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while True:
            left_s = patience - time.monotonic()
            try:
                handle = await within(max(0.0, left_s), self._started(listener))
            except OSError as error:
                if error.errno in OUT_OF_PROCESSES:
                    problem = f"{error.strerror}: a process could not be started"
                    self._shared.conditions.put(Condition.CANNOT_FORK, problem)
                if error.errno not in SHORTAGES or left_s <= pause or await interrupted(pause):
                    raise
                _log.warning("a host is started once more", extra={**self._facts, "problem": str(error)})
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self._shared.conditions.put(Condition.CANNOT_FORK, "")
                return handle

    async def _started(self, listener: HostListener) -> HostHandle:
        loop = asyncio.get_running_loop()
        self.cgroup = await loop.run_in_executor(self._shared.disk, cgroups.make, self.token)
        spec = replace(self._spec, token=self.token, cgroup=self.cgroup)
        await loop.run_in_executor(self._shared.disk, layout.prepare, spec, self._dir)
        return await self._shared.door.start_host(spec, self._dir, listener)

    @property
    def _facts(self) -> dict[str, object]:
        spec = self._spec
        return {"run_id": spec.run_id, "incarnation": spec.incarnation, "role": spec.role}
