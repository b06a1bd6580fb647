"""A machine: its disk, its hosts, and whichever agentd it has now, which begins where the last one was.

`Agentd` does what `Registry` and `NodeRun` do with a run, in their order, with the real `MemberSession`, and
the real `Hub` if the node is the hub.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentd.api.errors import AgentError, HubUnreachable, RunEnded, RunNotFound
from agentd.api.types import TERMINAL, Phase, RunSpec, RunStatus
from agentd.core import group_events as ev
from agentd.core.contact import Contact
from agentd.core.group import HostState
from agentd.groups.journal import PATIENCE
from agentd.groups.left import without_host
from agentd.hub.hub import Hub
from agentd.hub.links import HubLink, LocalHubLink
from agentd.hub.member import MemberSession, NodeIdentity
from agentd.hub.messages import Assignment, RunFinished
from agentd.hub.state import HubRecord
from tests.simulation.clock import Process
from tests.simulation.group import Host, Row, Supervisor, as_member
from tests.simulation.network import HubServer, RemoteLink

if TYPE_CHECKING:
    from tests.simulation.world import World

RUN, INCARNATION = "run", 7
EPOCHS_PER_START = 1_000_000
_HUB_RECORD, _ENDED, _LEAVING = "hub record", "ended", "leaving"


class Journal:
    """One agentd's way to its node's disk: in order, at most `PATIENCE` waited for."""

    def __init__(self, node: Node, process: Process) -> None:
        self._node = node
        self._process = process
        self._safe_at = 0.0
        self._behind_until = 0.0
        self.announced_until = 0.0
        """When all is safe that the hub has announced."""

    def post(self, key: str, value: object) -> float:
        """Write when there is time; tells when it is safe."""
        now = self._process.time()
        at = self._safe_at = max(self._safe_at, now + self._node.world.disk_latency(self._node))
        if at <= now:
            self._node.disk[key] = value
        else:
            self._process.call_at(at, self._node.disk.__setitem__, key, value)
        return at

    async def write(self, key: str, value: object, patience: float = PATIENCE) -> None:
        now, at = self._process.time(), self.post(key, value)
        if at > now and (now >= self._behind_until or patience > PATIENCE):
            if at > now + patience:
                self._behind_until = at
            await asyncio.sleep(min(at - now, patience))

    async def hub_announced(self, run_id: str, incarnation: int, record: HubRecord, patience: float) -> None:
        try:
            await self.write(_HUB_RECORD, record, patience)
        finally:
            # What is announced from here on is lost if this agentd dies before the disk has caught up.
            self.announced_until = self._safe_at
        self._node.world.judge.recorded(record)


class Node:
    """What of a machine outlives its agentd."""

    def __init__(self, world: World, name: str, roles: tuple[str, ...], *, is_hub: bool) -> None:
        self.world = world
        self.name = name
        self.roles = roles
        """Of its part in the run; none: it is only the hub."""
        self.is_hub = is_hub
        self.disk: dict[str, Any] = {}
        self.reports: dict[str, list[ev.GroupEvent]] = {}
        self.restarts: dict[str, int] = {}
        """By role, as its hosts wrote it down with the start of workers."""
        self.hosts: list[Host] = []
        self.former_hosts: list[Host] = []
        self.agentd: Agentd | None = None
        self.starts = 0
        self.powered = True
        self.contact: Contact | None = None
        """What the round file is made of."""

    @property
    def ended(self) -> bool:
        """Whether its part in the run is over, as its journal knows."""
        return _ENDED in self.disk

    @property
    def is_able(self) -> bool:
        """Whether nothing keeps it from taking part in the run."""
        hosts = (*self.hosts, *self.former_hosts)
        return _LEAVING not in self.disk and not any(host.stuck for host in hosts)

    def start(self) -> None:
        """Start an agentd, unless there is one or the machine is off."""
        if self.agentd is not None or not self.powered:
            return
        self.starts += 1
        self.world.trace(self.name, "agentd starts", self.starts)
        self.agentd = Agentd(self)

    def kill_agentd(self) -> None:
        """kill -9: hosts and workers live on."""
        agentd, self.agentd = self.agentd, None
        if agentd is not None:
            network = self.world.network
            agentd.end()
            network.node_ended(agentd.process)
            if self.is_hub:
                network.hub_ended(silently=False)
            for host in self.hosts:
                host.agentd_died()

    def lose_power(self) -> None:
        """All of it stops at once; nothing is said to anybody."""
        self.powered = False
        if self.is_hub:
            self.world.network.hub_ended(silently=True)
        self.world.network.power_lost(self.name)
        agentd, self.agentd = self.agentd, None
        if agentd is not None:
            agentd.end()
        for host in list(self.hosts):
            host.stuck = False
            host.die("no power")
        for host in self.former_hosts:
            host.stuck, host.running = False, 0
        for role in self.roles:
            # Another boot id: no group goes on.
            self.disk.pop(role, None)
        self.reports.clear()
        self.restarts.clear()

    def running(self) -> list[tuple[str, int]]:
        """The roles whose workers live, each with its round; not those that nothing can kill."""
        return [(host.role, host.running) for host in self.hosts if host.running]


class Agentd:
    """An agentd with its part in one run: hears its hub as `MemberListener`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.process = Process(node.world.clock, f"{node.name}/agentd{node.starts}")
        self.journal = Journal(node, self.process)
        self.supervisors: dict[str, Supervisor] = {}
        self.hub: Hub | None = None
        self.door_open = False
        self._hub_over = False
        self._part_over = False
        self._concluding = False
        self._epoch = node.starts * EPOCHS_PER_START
        self.process.call_soon(self._start)

    # --- its life ---------------------------------------------------------------------------------------

    def end(self) -> None:
        """SIGKILL."""
        if self.journal.announced_until > self.process.time():
            self.node.world.judge.hub_forgets()
        self.process.kill()

    def _start(self) -> None:
        node = self.node
        if node.is_hub and (not node.ended or _HUB_RECORD in node.disk):
            self._be_hub()
        if not node.ended:
            self._take_part()
        self.door_open = True
        for host in node.hosts:
            host.process.call_later(node.world.random.random() * 0.1, host.dial)

    def _be_hub(self) -> None:
        node = self.node
        self.hub = Hub(node.name, self.journal, address="hub")
        self.hub.create(node.world.spec, INCARNATION, node.disk.get(_HUB_RECORD))
        node.world.network.server = HubServer(self.process, self.hub)

    def _take_part(self) -> None:
        node = self.node
        self.session = MemberSession(
            run_id=RUN,
            incarnation=INCARNATION,
            identity=NodeIdentity(
                node_id=node.name, agent_uid=f"uid-{node.name}", address=f"{node.name}.example:7460"
            ),
            link=self._link(),
            listener=self,
            next_epoch=self._next_epoch,
            reattach_window=node.world.spec.rendezvous.reattach_window or 0.0,
            hub_timeout=node.world.spec.rendezvous.hub_timeout or 0.0,
            uniform=node.world.random.uniform,
        )
        self.session.start()
        for role in node.roles:
            left = node.disk.get(role)
            if left is None:
                for host in list(node.hosts):
                    if host.role == role:
                        host.die("no journal knows it")
                node.restarts.pop(role, None)
                self.supervisors[role] = Supervisor(self, role)
            else:
                self._go_on(role, left)
        if _LEAVING in node.disk:
            self.leave()

    def _go_on(self, role: str, left: Row) -> None:
        if unknown := [host for host in self.node.hosts if host.role == role and host is not left.host]:
            left = self._end(unknown, left)
        state, heard = left.state, left.state.host_heard
        if state.host is HostState.LIVE and not heard:
            heard = left.host is not None and len(left.host.reports) > left.sequence
            if not heard:
                for host in self.node.hosts:
                    if host.role == role:
                        host.die("never heard")
                left = left._replace(state=replace(state, host=HostState.NONE, host_pid=0), host=None)
        state = left.state
        if (member := as_member(left, self.node.reports.get(role, []))) is not None:
            self.session.resume(member, self.node.restarts.get(role, 0))
        self.supervisors[role] = Supervisor(self, role, left)
        if state.phase is Phase.FAILED:
            self.session.leave(role, state.reason, failed=True)

    def _end(self, unknown: list[Host], left: Row) -> Row:
        """Hosts that a slow disk kept from the journal; their group begins again."""
        for host in unknown:
            host.die("no journal knows it")
        if left.state.phase in TERMINAL:
            return left
        reports = self.node.reports.get(left.state.role, [])
        newest = max((event.round for event in reports if isinstance(event, ev.WorkersStarted)), default=0)
        return Row(without_host(left.state, newest), len(reports), None)

    def _link(self) -> HubLink:
        network, name = self.node.world.network, self.node.name
        if self.hub is not None:
            return LocalHubLink(self.hub)
        return RemoteLink(network, name, self.process)

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def leave(self) -> None:
        """This node's part is to end, the others go on."""
        self.journal.post(_LEAVING, True)
        for role, supervisor in self.supervisors.items():
            if not supervisor.over:
                self.session.leave(role, "asked to")
        self._stop(Phase.STOPPED, "asked to", None)

    async def hand_over(self) -> None:
        """SIGUSR2: say goodbye, then end; hosts stay."""
        if not self.node.ended:
            await self.session.close()
        if self.hub is not None:
            await self.hub.close("agentd is replaced")
        self.process.call_soon(self.node.kill_agentd)

    def _stop(self, phase: Phase, reason: str, grace: float | None) -> None:
        self._part_over = True
        for supervisor in self.supervisors.values():
            supervisor.post(ev.Finish(phase, reason, grace))
        self.look()

    def look(self) -> None:
        """End the part when nothing of it is left."""
        groups_over = all(supervisor.over for supervisor in self.supervisors.values())
        if not groups_over or self._concluding or (self.hub is not None and not self._hub_over):
            return
        if self.supervisors or self._hub_over or self._part_over:
            self._concluding = True
            self.process.live(self._conclude())

    async def _conclude(self) -> None:
        await self.journal.write(_ENDED, True)
        self.node.world.trace(self.node.name, "part is over")
        await self.session.close()

    # --- what the hub says ------------------------------------------------------------------------------

    def on_welcome(self, spec: RunSpec) -> None:
        assert spec == self.node.world.spec

    def on_assignment(self, role: str, assignment: Assignment) -> None:
        heard = self.node.restarts.get(role, 0)
        self.node.world.judge.assigned(self.node.name, role, assignment, heard)
        self.supervisors[role].post(ev.Placed(assignment))

    def on_stop_round(self, round_: int, reason: str) -> None:
        self.node.world.trace(self.node.name, "is told to stop", round_, reason)
        for supervisor in self.supervisors.values():
            supervisor.post(ev.RoundStopped(round_, reason))

    def on_waiting(self, role: str, reason: str) -> None:
        self.supervisors[role].post(ev.MadeSpare(reason))

    def on_finished(self, finished: RunFinished) -> None:
        self.node.world.judge.finished(self.node.name, finished)
        for supervisor in self.supervisors.values():
            supervisor.post(ev.Finish(finished.phase, finished.reason, finished.stop_grace))

    def on_view(self, status: RunStatus) -> None:
        if self.hub is not None and status.phase in TERMINAL:
            self._hub_over = True
            self.look()

    def on_contact(self, contact: Contact) -> None:
        self.node.contact = contact

    def on_hub_lost(self, problem: str, since: float = 0.0) -> None:
        self.node.world.trace(self.node.name, "hub lost", problem)

    def on_hub_found(self) -> None:
        self.node.world.trace(self.node.name, "hub found")

    def on_hub_timeout(self, error: HubUnreachable) -> None:
        self.node.world.judge.gave_up(self.node.name, str(error))
        self._stop(Phase.FAILED, str(error), None)

    def on_refused(self, error: AgentError) -> None:
        self.node.world.judge.refused(self.node.name, error)
        gone = isinstance(error, RunNotFound | RunEnded)
        self._stop(Phase.LOST if gone else Phase.FAILED, str(error), None)
