"""A group that was lost to processes which SIGKILL did not end comes back to its run once they are gone.

As after a reboot: unless the run has ended, or asks for no rejoin, or the node was to leave it. Where the hub
does not answer, or the node cannot take the group on now, it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentd.api.errors import AgentError, Code
from agentd.api.types import TERMINAL, Phase, RunRequest
from agentd.core import defaults
from agentd.groups.archive import Archive
from agentd.groups.background import Background
from agentd.groups.intake import Intake
from agentd.groups.ports import Rendezvous
from agentd.groups.recovery import FormerRun
from agentd.groups.roster import Roster
from agentd.groups.run import NodeRun
from agentd.groups.stuck import StuckGroup

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

_log = logging.getLogger(__name__)


class Rejoin:
    """Brings groups of this node back. Used on the event loop."""

    def __init__(
        self,
        roster: Roster,
        intake: Intake,
        rendezvous: Rendezvous,
        archive: Archive | None,
        stays_out: Callable[[], bool],
    ) -> None:
        """`archive` knows the runs of which nothing lives here; `stays_out()` whether nothing is to begin."""
        self._roster = roster
        self._intake = intake
        self._rendezvous = rendezvous
        self._archive = archive
        self._stays_out = stays_out
        self._tries = Background()

    def after(self, group: StuckGroup) -> None:
        """Nothing is left of this group any more."""
        self._tries.begin(self._try(group), f"rejoin {group.run_id}")

    async def close(self) -> None:
        """Bring none back any more."""
        await self._tries.close()

    async def _try(self, group: StuckGroup) -> None:
        facts = {"run_id": group.run_id, "incarnation": group.incarnation, "role": group.role}
        loop = asyncio.get_running_loop()
        gives_up, pause = loop.time() + defaults.HUB_TIMEOUT, FIRST_PAUSE_S
        while True:
            try:
                if self._stays_out() or await self._rejoined(group):
                    return
            except AgentError as error:
                if error.code is Code.NOT_FOUND or loop.time() + pause > gives_up:
                    _log.info("a lost group stays out: %s", error, extra=facts)
                    return
                _log.warning("a lost group cannot come back now: %s", error, extra=facts)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _rejoined(self, group: StuckGroup) -> bool:
        """Whether there is nothing more to try. Raises the `AgentError` that another try may change."""
        key = group.run_id, group.incarnation
        newest = self._roster.newest(group.run_id)
        if newest is None or newest.incarnation != group.incarnation:
            return True
        live = self._roster.live(key)
        request = _request(live) if live is not None else await self._former_request(group)
        if request is None or request.spec.no_rejoin or (live is not None and not _lacks(live, group.role)):
            return True
        status, _ = await self._rendezvous.describe(request.hub_address, *key)
        if status.phase in TERMINAL:
            return True
        if live is None:
            logs = self._roster.logs_of_ended(key) or ()
            await self._intake.begin(request, logs, started_at=newest.started_at)
        else:
            plans = await self._intake.plan(request)
            live.take_on([plan for plan in plans if plan.role.role == group.role])
        return True

    async def _former_request(self, group: StuckGroup) -> RunRequest | None:
        """The request that took part in a run which has ended here because of this."""
        found = await self._archive.ended_run(group.run_id) if self._archive is not None else None
        if (
            found is None
            or found[0].incarnation != group.incarnation
            or found[0].status.phase is not Phase.LOST
        ):
            return None
        return FormerRun(row=found[0], logs=(), hub_record="").request


def _request(run: NodeRun) -> RunRequest:
    return FormerRun(row=run.part.row(run.status), logs=(), hub_record="").request


def _lacks(run: NodeRun, role: str) -> bool:
    """Whether the run goes on here, and without that group."""
    group = run.group(role)
    return not run.is_ending and group is not None and group.phase is Phase.LOST
