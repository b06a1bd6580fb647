"""Ends what a host has left of its worker group; what SIGKILL does not end goes into the book of stuck."""

from __future__ import annotations

import asyncio
import logging

from agentd.groups.facilities import Facilities
from agentd.groups.stuck import StuckGroup
from agentd.host.wire import HostSpec
from agentd.procs import tree
from agentd.procs.resources import SHORTAGES

PAUSE_S = 2.0
"""Between two tries while something has run out."""

_log = logging.getLogger(__name__)


class Sweeper:
    """For one worker group."""

    def __init__(self, spec: HostSpec, facilities: Facilities) -> None:
        self._spec = spec
        self._shared = facilities

    async def end(
        self, marks: tree.Marks, *, grace_s: float, bound_s: float
    ) -> tuple[tree.StuckProcess, ...]:
        """End all that has the marks; answers what is still there `bound_s` seconds after SIGKILL."""
        stuck = await self._ended(marks, grace_s, bound_s)
        if stuck:
            spec = self._spec
            left = StuckGroup(
                run_id=spec.run_id,
                incarnation=spec.incarnation,
                role=spec.role,
                marks=marks,
                processes=stuck,
            )
            self._shared.stuck.add(left)
        return stuck

    async def _ended(
        self, marks: tree.Marks, grace_s: float, bound_s: float
    ) -> tuple[tree.StuckProcess, ...]:
        """Until it can be told what is left, nothing may start: asked again while something has run out."""
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._shared.sweeps,
                    lambda: tree.end_group(marks, grace_s=grace_s, kill_bound_s=bound_s),
                )
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                facts = {"run_id": self._spec.run_id, "incarnation": self._spec.incarnation}
                facts |= {"role": self._spec.role, "problem": str(error)}
                _log.warning("a group cannot be swept now", extra=facts)
            await asyncio.sleep(PAUSE_S)
