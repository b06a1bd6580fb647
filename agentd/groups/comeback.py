"""Goes on where an earlier agentd of this node was: shows what has ended, takes part again in what lives."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from agentd.api.errors import AgentError
from agentd.api.types import Drain, Phase, StopRequest, StopScope
from agentd.groups import drain, history
from agentd.groups.admission import RolePlan
from agentd.groups.facilities import Facilities
from agentd.groups.farewell import Farewells
from agentd.groups.intake import Intake
from agentd.groups.recovery import FormerRun, look_back
from agentd.groups.roster import Roster
from agentd.groups.wish import read_wish


class Comeback:
    """What `Registry.start` does before anybody can ask."""

    def __init__(
        self,
        node_id: str,
        roster: Roster,
        intake: Intake,
        farewells: Farewells,
        facilities: Facilities,
        drain: Drain | None,
    ) -> None:
        """`drain`: what an operator had asked for."""
        self._node_id = node_id
        self._roster = roster
        self._intake = intake
        self._farewells = farewells
        self._shared = facilities
        self._drain = drain

    async def run(self) -> None:
        """Show what has ended, go on with what lives here, take part again in what lives elsewhere."""
        shared = self._shared
        left = await shared.on_disk(lambda: look_back(shared.journal.remembered, shared.state_dir))
        for stuck in left.stuck:
            self._shared.stuck.add(stuck)
        for former in left.ended:
            self._roster.show_ended(former.row, former.row.status, former.logs)
            await self._be_tombstone(former)
        for former in left.live:
            try:
                await self._rejoin(former)
            except AgentError as error:
                await self._shared.on_disk(former.end)
                self._lose(former, f"{former.what_happened}, and it cannot go on here: {error}")

    async def _be_tombstone(self, former: FormerRun) -> None:
        """Tell members that were away how the run ended, if its hub was here."""
        row = former.row
        if not row.hub_address and former.hub_record:
            with contextlib.suppress(AgentError):
                await self._intake.be_hub(row, former.hub_record)

    async def _rejoin(self, former: FormerRun) -> None:
        row = former.row
        wish = read_wish(row.wish, row.incarnation)
        left = self._leaves(wish)
        stays_out = not former.groups and bool(left or (row.spec.no_rejoin and former.lost))
        if stays_out and (row.hub_address or not (left or former.has_others(self._node_id))):
            self._lose(former, f"{former.what_happened}, and {left or 'the run asks for no rejoin'}")
            if row.hub_address:
                await self._farewells.tell_gone(row)
            return
        if not row.hub_address:
            await self._intake.be_hub(row, former.hub_record)
        now = time.time()
        self._shared.journal.post(
            *(history.group_lost(row, role, former.what_happened, now) for role in former.lost)
        )
        if stays_out:
            # It is the hub of others, who go on without this node's part.
            await self._intake.go_on(former, ())
        elif former.groups:
            await self._intake.go_on(former, await self._plans_beside(former))
        else:
            await self._intake.begin(former.request, former.logs, started_at=row.status.started_at)
        run = self._roster.live((row.run_id, row.incarnation))
        if wish is not None and run is not None:
            self._farewells.carry_out(run, wish)

    def _leaves(self, wish: StopRequest | None) -> str:
        """Why this node is to have no part in a run that goes on; empty: it may."""
        if self._drain is not None and drain.time_left(self._drain, time.time()) == 0.0:
            return "the node is drained"
        return "it was leaving the run" if wish is not None and wish.scope is StopScope.LEAVE else ""

    async def _plans_beside(self, former: FormerRun) -> tuple[RolePlan, ...]:
        """For the groups that had not begun or cannot go on."""
        begun = {group.spec.role for group in former.groups}
        if not former.roles - begun:
            return ()
        return tuple(plan for plan in await self._intake.plan(former.request) if plan.role.role not in begun)

    def _lose(self, former: FormerRun, reason: str) -> None:
        row = former.row
        status = replace(row.status, phase=Phase.LOST, reason=reason, finished_at=time.time())
        self._shared.journal.post(replace(row, status=status))
        self._roster.show_ended(row, status, former.logs)
