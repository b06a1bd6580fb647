"""This node's part of one run: its supervisors, its session with the hub, and the status shown here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from types import MappingProxyType

from agentd.api.errors import AgentError, HubUnreachable, RunEnded, RunNotFound
from agentd.api.types import TERMINAL, GroupRef, GroupStatus, Phase, RunSpec, RunStatus
from agentd.core import group_events as ev
from agentd.core.assignment import Assignment
from agentd.core.conditions import Condition
from agentd.core.contact import Contact
from agentd.groups import history, snapshot
from agentd.groups.admission import RolePlan
from agentd.groups.facilities import Facilities
from agentd.groups.hubword import HubWord
from agentd.groups.left import KEEP, LeftGroup
from agentd.groups.logs import WorkerLog
from agentd.groups.part import Part, host_spec
from agentd.groups.ports import Rendezvous, Session
from agentd.groups.supervisor import KEPT_LOGS, Supervisor
from agentd.hub.messages import RunFinished

NOTHING: Mapping[str, str] = MappingProxyType({})

_log = logging.getLogger(__name__)


class NodeRun:
    """One run on this node, from admission to the end. Hears its hub as `MemberListener`."""

    def __init__(
        self,
        part: Part,
        facilities: Facilities,
        rendezvous: Rendezvous,
        changed: Callable[[NodeRun], object],
        former_logs: Sequence[WorkerLog] = (),
    ) -> None:
        """`changed(run)` is called when the status is another one; the caller gives it a revision.

        `former_logs`: of workers the run had here before, under an earlier agentd or before it left.
        """
        self.part = part
        self._shared = facilities
        self._rendezvous = rendezvous
        self._word = HubWord(part, rendezvous, facilities.journal)
        self._changed = changed
        self._end: snapshot.PartEnd | None = None
        self._conditions: dict[str, str] = {}
        self._session: Session | None = None
        self._supervisors: dict[str, Supervisor] = {}
        self._former_logs = deque(former_logs, maxlen=KEPT_LOGS)
        self.conclusion: asyncio.Task[None] | None = None
        """Runs once nothing of the run is left here."""
        self.status = self._composed()
        """The newest snapshot. `revision` is the registry's business."""
        self.ended = asyncio.Event()

    # What the registry asks.

    def start(self, left: Sequence[LeftGroup] = ()) -> None:
        """Begin: everything was checked and journalled. `left`: groups that an earlier agentd began."""
        part = self.part
        self._session = self._rendezvous.session(
            part.hub_address,
            part.spec,
            part.incarnation,
            address=part.address,
            node_name=part.node_name,
            listener=self,
            reattach_window=part.reattach_window if self._shared.host_mode == KEEP else None,
        )
        self._go_on(left, self._session)
        if left or not part.plans:
            # Before any group's word: the part of the hub's own node may be over, and the run go on.
            self._word.ask_here()
        self.status = self._composed()
        self._changed(self)
        self.take_on(part.plans)

    def _go_on(self, left: Sequence[LeftGroup], session: Session) -> None:
        """Supervise what an earlier agentd began, and speak for it at the hub."""
        for group in left:
            if group.member is not None:
                session.resume(group.member, group.restart_count)
            spec = replace(group.spec, token="", mode=self._shared.host_mode)
            supervisor = Supervisor(spec, session, self._shared, self._refresh, group)
            self._supervisors[supervisor.role] = supervisor
            if group.state.phase is Phase.FAILED:
                # The hub may not have heard that it gave up.
                session.leave(supervisor.role, group.state.reason, failed=True)

    def take_on(self, plans: Sequence[RolePlan]) -> None:
        """Supervise a group of each of these roles, unless one is alive already."""
        assert self._session is not None, "start comes first"
        self._end = None
        for plan in plans:
            former = self._supervisors.get(plan.role.role)
            if former is not None and former.status.phase not in TERMINAL:
                continue
            if former is not None:
                self._former_logs.extend(former.worker_logs())
            spec = host_spec(self.part, plan, self._shared)
            supervisor = Supervisor(spec, self._session, self._shared, self._refresh)
            self._supervisors[supervisor.role] = supervisor
            supervisor.post(ev.Begin())
        self._refresh()

    @property
    def is_live(self) -> bool:
        """Whether anything of it is still to be done here."""
        return not self.ended.is_set()

    @property
    def is_ending(self) -> bool:
        """Whether this node's part, or the whole run, is to end or has ended."""
        return self._end is not None or self._word.is_last

    @property
    def is_alone(self) -> bool:
        """Whether no other node has, or is to have, a part in the run."""
        own = self.part.node_id
        return len(self.part.spec.nodes) <= 1 and all(node.node_id == own for node in self.status.nodes)

    def group(self, role: str) -> GroupStatus | None:
        """One worker group's status."""
        supervisor = self._supervisors.get(role)
        return supervisor.status if supervisor else None

    def groups(self) -> tuple[GroupStatus, ...]:
        """All worker groups of the run here."""
        return tuple(supervisor.status for supervisor in self._supervisors.values())

    def group_refs(self) -> tuple[GroupRef, ...]:
        """The worker groups that have not ended, by name."""
        run_id, incarnation = self.part.key
        return tuple(
            GroupRef(run_id=run_id, incarnation=incarnation, role=group.role, phase=group.phase)
            for group in self.groups()
            if group.phase not in TERMINAL
        )

    def worker_logs(self) -> tuple[WorkerLog, ...]:
        """The log folders of all its workers here, also of those before an agentd began again."""
        groups = (supervisor.worker_logs() for supervisor in self._supervisors.values())
        return tuple(chain(self._former_logs, *groups))

    def signal(self, signum: int, ranks: Sequence[int]) -> tuple[int, ...]:
        """Signal running workers; answers the ranks that get it."""
        found = [supervisor.signal(signum, ranks) for supervisor in self._supervisors.values()]
        return tuple(sorted(rank for some in found for rank in some))

    def stop(self, reason: str, grace: float | None, phase: Phase = Phase.STOPPED) -> None:
        """End this node's part. Again only shortens the grace."""
        self._end = self._end or snapshot.PartEnd(phase, reason)
        for supervisor in self._supervisors.values():
            supervisor.post(ev.Finish(self._end.phase, self._end.reason, grace))
        self._refresh()

    def leave(self, reason: str, grace: float | None) -> None:
        """End this node's part and let the others go on without it."""
        if self._session is not None:
            for role, supervisor in self._supervisors.items():
                if supervisor.status.phase not in TERMINAL:
                    self._session.leave(role, reason)
        self.stop(reason, grace)

    def kill_hosts(self) -> None:
        """End every host at once, and the workers with them."""
        for supervisor in self._supervisors.values():
            supervisor.kill_host()

    def refresh(self) -> None:
        """Show what else has changed: the node's conditions."""
        self._refresh()

    def note(self, condition: Condition, sentence: str) -> None:
        """Something degrades this run here, for good; the last word counts."""
        self._conditions[condition.value] = sentence
        self._refresh()

    async def groups_ended(self) -> None:
        """Return when no group of it is left here."""
        await asyncio.gather(*(supervisor.ended.wait() for supervisor in self._supervisors.values()))

    async def close(self) -> None:
        """Watch over nothing any more. Ends nothing: that is `stop`."""
        tasks = [supervisor.close() for supervisor in self._supervisors.values()]
        session, self._session = self._session, None
        if session is not None:
            tasks.append(session.close())
        await asyncio.gather(*tasks)

    # What the hub says.

    def on_welcome(self, spec: RunSpec) -> None:
        """The hub has taken the session; what it runs is known from the request."""

    def on_assignment(self, role: str, assignment: Assignment) -> None:
        """A round was formed with one of the groups in it."""
        self._word.placed(assignment)
        self._post(role, ev.Placed(assignment))

    def on_stop_round(self, round_: int, reason: str) -> None:
        """The workers of a round are to go, to form another."""
        for supervisor in self._supervisors.values():
            supervisor.post(ev.RoundStopped(round_, reason))

    def on_waiting(self, role: str, reason: str) -> None:
        """The round is full."""
        self._post(role, ev.MadeSpare(reason))

    def on_view(self, status: RunStatus) -> None:
        """The run as its hub sees it."""
        if not self._word.is_last:
            self._word.view(status)
            self._refresh()

    def on_finished(self, finished: RunFinished) -> None:
        """The run is over for everyone."""
        for supervisor in self._supervisors.values():
            supervisor.post(ev.Finish(finished.phase, finished.reason, finished.stop_grace))
        self._word.finished(finished)
        self._refresh()

    def on_contact(self, contact: Contact) -> None:
        """The hub has answered, or wants a round gone: the hosts hear at once how long each may act."""
        for supervisor in self._supervisors.values():
            supervisor.tell_contact(contact)

    def on_hub_lost(self, problem: str, since: float) -> None:
        """The hub does not answer; workers go on."""
        self._word.lost(problem, since, self.status)
        self._refresh()

    def on_hub_found(self) -> None:
        """The hub answers again."""
        self._word.found(self.status)
        self._refresh()

    def on_hub_timeout(self, error: HubUnreachable) -> None:
        """The hub was needed and silent for too long."""
        self.stop(str(error), None, Phase.FAILED)

    def on_refused(self, error: AgentError) -> None:
        """The hub takes no session of this node."""
        gone = isinstance(error, RunNotFound | RunEnded)
        self.stop(str(error), None, Phase.LOST if gone else Phase.FAILED)

    # The status.

    def _post(self, role: str, event: ev.GroupEvent) -> None:
        supervisor = self._supervisors.get(role)
        if supervisor is not None:
            supervisor.post(event)

    def _composed(self, of_node: Mapping[str, str] = NOTHING) -> RunStatus:
        """The run now. `of_node`: what degrades the node."""
        part = self.part
        own = snapshot.own_part(
            part.node_id, part.address, part.node_name or part.node_id, self.groups(), self._word.problem,
            {**of_node, **self._conditions, **self._skipped_preload()},
        )  # fmt: skip
        return snapshot.compose(self._word.run, own, self._end, hub_here=part.hub_here)

    def _skipped_preload(self) -> Mapping[str, str]:
        problems = [each.preload_problem for each in self._supervisors.values() if each.preload_problem]
        return {Condition.PRELOAD_SKIPPED.value: "; ".join(problems)} if problems else NOTHING

    def _refresh(self) -> None:
        """Publish the status if it is another one; end the part when nothing of it is left."""
        if self.conclusion is not None:
            return
        if self._end is None and not self.part.hub_here:
            self._end = snapshot.part_end_of(self.groups())
        status = self._composed(self._shared.conditions.details)
        if status.phase in TERMINAL:
            # For good: what degrades the node passes.
            status = self._composed()
            # Journalled before anybody is told, and told with its time.
            conclude = self._conclude(replace(status, finished_at=status.finished_at or time.time()))
            self.conclusion = asyncio.get_running_loop().create_task(conclude)
        else:
            self._publish(status)

    def _publish(self, status: RunStatus) -> None:
        if replace(status, revision=self.status.revision) != self.status:
            self.status = status
            self._changed(self)

    async def _conclude(self, status: RunStatus) -> None:
        await self._shared.journal.write(self.part.row(status), history.run_ended(status, time.time()))
        _log.info("run ended here", extra={"run_id": status.run_id, "phase": status.phase.value})
        self.status = status
        self.ended.set()
        self._changed(self)
        session, self._session = self._session, None
        if session is not None:
            await session.close()
