"""How a run begins on this node, or goes on: planned, its devices reserved, journalled, only then started."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from agentd.api.errors import InvalidSpec, ProgramUnusable
from agentd.api.patience import within
from agentd.api.types import Phase, RunRequest, RunStatus
from agentd.core.specs import validate
from agentd.groups import history
from agentd.groups.admission import Machine, RolePlan, plan_node
from agentd.groups.facilities import Facilities
from agentd.groups.logs import WorkerLog
from agentd.groups.part import Part
from agentd.groups.ports import Rendezvous
from agentd.groups.records import ForgetRun, GroupRow, RunRow
from agentd.groups.recovery import FormerRun
from agentd.groups.roster import Roster
from agentd.groups.run import NodeRun

ADMISSION_S = 15.0
"""How long a disk may take to tell whether a program is there."""

_log = logging.getLogger(__name__)


class Intake:
    """Takes on this node's part of a run. Whether it may, next to what runs here, was judged before."""

    def __init__(
        self,
        node_id: str,
        roster: Roster,
        facilities: Facilities,
        rendezvous: Rendezvous,
        advertise: Callable[[str], Awaitable[str]],
        machine: Machine | None,
    ) -> None:
        """`machine`: None for this one."""
        self._node_id = node_id
        self._roster = roster
        self._shared = facilities
        self._rendezvous = rendezvous
        self._advertise = advertise
        self._machine = machine

    async def start(self) -> None:
        """Learn what the machine has. Before anything else."""
        self._machine = self._machine or await self._shared.on_disk(lambda: Machine.here(self._node_id))

    async def begin(
        self,
        request: RunRequest,
        former_logs: tuple[WorkerLog, ...] = (),
        *,
        started_at: float | None = None,
    ) -> RunStatus:
        """Begin the part that is asked for; a run that lives here takes on the roles it lacks.

        `started_at`: of a run that the journal has already; a disk that takes no write must not end it.
        """
        spec = request.spec
        validate(spec)
        self._check_node_name(request)
        plans = await self.plan(request)
        former = self._roster.live((spec.run_id, request.incarnation))
        self._roster.devices.reserve(spec.run_id, (d for plan in plans for d in plan.role.devices))
        if former is not None:
            # A Stop of its earlier part, which is over, must not be carried out on this one.
            await self._shared.journal.write(former.part.row(former.status))
            former.take_on(plans)
            return self._roster.status(*former.part.key)
        try:
            run = await self._promise(request, plans, former_logs, started_at)
        except BaseException:
            self._roster.devices.release(spec.run_id)
            raise
        self._roster.enter(run)
        self._shared.journal.post(history.run_started(run.status, run.part.hub_address, time.time()))
        run.start()
        _log.info("run begins here", extra={"run_id": spec.run_id, "incarnation": run.part.incarnation})
        return self._roster.status(*run.part.key)

    async def go_on(self, former: FormerRun, plans: tuple[RolePlan, ...]) -> None:
        """Take the run's groups over, and begin others."""
        row, begun = former.row, {group.spec.role for group in former.groups}
        part = await self._make_part(former.request, plans, row.status.started_at)
        roles = [role for role in row.spec.roles if role.role in begun]
        self._roster.devices.reserve(
            row.run_id, (d for role in (*roles, *(plan.role for plan in plans)) for d in role.devices)
        )
        run = NodeRun(part, self._shared, self._rendezvous, self._roster.publish, former.logs)
        self._roster.enter(run)
        run.start(former.groups)
        _log.info("run goes on here", extra={"run_id": row.run_id, "incarnation": row.incarnation})

    async def plan(self, request: RunRequest) -> tuple[RolePlan, ...]:
        """The groups of this node, resolved. Raises the `AgentError` that says why there can be none."""
        spec, machine = request.spec, self._machine
        assert machine is not None, "start comes first"
        elsewhere = spec.nodes and not request.node_name and not request.join
        if spec.external_agents or elsewhere:
            # This node is the hub of other nodes, or of agents in processes of their own, and nothing else.
            plans: tuple[RolePlan, ...] = ()
        else:
            planning = self._shared.on_disk(
                lambda: plan_node(spec, request.node_name, request.passed_env, machine)
            )
            try:
                plans = await within(ADMISSION_S, planning)
            except asyncio.TimeoutError:
                problem = f"the disk did not answer in {ADMISSION_S:g} s"
                raise ProgramUnusable(self._node_id, spec.roles[0].command.entrypoint, problem) from None
        if not plans and request.hub_address:
            raise InvalidSpec("roles", f"none of them is for node {request.node_name or self._node_id!r}")
        return plans

    async def be_hub(self, row: RunRow, record: str) -> None:
        """Be the hub of a run once more, with what an earlier agentd journalled of it."""
        address = await self._advertise("")
        self._rendezvous.create(row.spec, row.incarnation, address, record, row.status.started_at)

    def _check_node_name(self, request: RunRequest) -> None:
        name, spec = request.node_name, request.spec
        if name and not request.join and name not in spec.nodes:
            raise InvalidSpec("node_name", f"{name!r} is not in the run's node list")

    async def _promise(
        self,
        request: RunRequest,
        plans: tuple[RolePlan, ...],
        former_logs: tuple[WorkerLog, ...],
        started_at: float | None,
    ) -> NodeRun:
        """Journal the run before anything of it happens, so that the next agentd would know of it."""
        part = await self._make_part(request, plans, started_at)
        left = self._roster.logs_of_ended(part.key)
        logs = former_logs if left is None else left
        run = NodeRun(part, self._shared, self._rendezvous, self._roster.publish, logs)
        run_id, incarnation = part.key
        groups = (
            GroupRow(run_id=run_id, incarnation=incarnation, role=plan.role.role, phase=Phase.PENDING)
            for plan in plans
        )
        try:
            write = self._shared.journal.write if started_at is not None else self._shared.journal.require
            await write(part.row(run.status), *groups)
            if part.hub_here and not request.join:
                self._rendezvous.create(part.spec, incarnation, part.address, started_at=part.started_at)
        except BaseException:
            self._shared.journal.post(ForgetRun(run_id=run_id, incarnation=incarnation))
            raise
        return run

    async def _make_part(
        self, request: RunRequest, plans: tuple[RolePlan, ...], started_at: float | None
    ) -> Part:
        newest = self._roster.newest(request.spec.run_id)
        last = newest.incarnation if newest else 0
        now = time.time()
        return Part(
            spec=request.spec,
            # Fine enough that two hubs do not give one number to two runs of one id.
            incarnation=request.incarnation or max(last + 1, int(now * 1000)),
            request_id=request.request_id,
            node_id=self._node_id,
            address=await self._advertise(request.hub_address),
            plans=plans,
            node_name=request.node_name,
            hub_address=request.hub_address,
            passed_env=request.passed_env,
            started_at=started_at or now,
        )
