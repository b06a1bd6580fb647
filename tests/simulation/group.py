"""A worker group on a simulated node: the decisions of `core.group`, a host and workers made of numbers.

`Supervisor` does what `agentd.groups.supervisor` does, in its order: decide, journal, act. The host outlives
it, keeps its reports as host.jsonl does, and dials whoever owns the node next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from agentd.api.types import TERMINAL, Failure, Phase
from agentd.core import defaults
from agentd.core import group_events as ev
from agentd.core.assignment import Assignment
from agentd.core.group import GroupState, HostState, step
from agentd.groups.supervisor import KILL_PATIENCE_S
from agentd.host.handle import MEET_TIMEOUT_S, REDIAL_TIMEOUT_S
from agentd.hub.messages import MemberCondition, MemberState
from tests.simulation.clock import Process

if TYPE_CHECKING:
    from tests.simulation.node import Agentd, Node

WIRE_S = 0.001
"""Between a host and its agentd."""
HISTORY = (
    ev.HostSpawned,
    ev.HostDied,
    ev.Placed,
    ev.RoundStopped,
    ev.WorkersStarted,
    ev.WorkersFailed,
    ev.WorkersUnkillable,
)
"""Events that are worth a line of the node's history, so that the group's row is written with it."""


class Row(NamedTuple):
    """A group in the journal."""

    state: GroupState
    sequence: int
    host: Host | None


class Supervisor:
    """Takes care of one group under one agentd."""

    def __init__(self, agentd: Agentd, role: str, left: Row | None = None) -> None:
        self.agentd = agentd
        self.process = agentd.process
        self.role = role
        grace = agentd.node.world.spec.stop_grace or 0.0
        fresh = GroupState(role=role, local_world_size=1, stop_grace=grace)
        self.state = left.state if left else fresh
        self._sequence = left.sequence if left else 0
        self._events: deque[tuple[int, ev.GroupEvent]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self.host: Host | None = None
        self._heard: int | None = None
        self._admitted = False
        self._met = False
        self._unsent: list[object] = []
        self.process.live(self._live())
        if left is None:
            self.post(ev.Begin())
        else:
            self._go_on(left)

    @property
    def over(self) -> bool:
        return self.state.phase in TERMINAL

    def post(self, event: ev.GroupEvent, sequence: int = 0) -> None:
        self._events.append((sequence, event))
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _go_on(self, left: Row) -> None:
        self.post(ev.Resumed())
        if left.host is not None and left.state.host in (HostState.LIVE, HostState.LEAVING):
            self.host, self._heard, self._admitted = left.host, left.sequence, True
            if left.host.process.dead:
                self.process.call_soon(self.host_died, left.host)
            else:
                self._be_patient(REDIAL_TIMEOUT_S)

    # --- its host ---------------------------------------------------------------------------------------

    def _be_patient(self, seconds: float) -> None:
        self._met = False
        self.process.call_later(seconds, self._lose_patience, self.host)

    def _lose_patience(self, host: Host) -> None:
        if self.host is host and not self._met:
            host.die("it does not dial in")

    def meet(self, host: Host) -> None:
        """A host has dialled in."""
        if self.host is not host:
            host.process.call_later(WIRE_S, host.refused)
            return
        self._met = True
        host.line = self
        self._flush()
        if self._heard is None:
            self._heard = len(host.reports)
        else:
            self.read_on(host)
            self.post(ev.HostMet())

    def read_on(self, host: Host) -> None:
        """Hear what the host has reported since."""
        if self.host is host and self._heard is not None:
            for event in host.reports[self._heard :]:
                self._heard += 1
                self.post(event, self._heard)

    def host_died(self, host: Host) -> None:
        """Its pidfd is readable."""
        if self.host is host:
            self.read_on(host)
            self.host = None
            self.post(ev.HostDied("killed"))

    def _tell(self, frame: object) -> None:
        if self.host is not None:
            self._unsent.append(frame)
            self._flush()

    def _flush(self) -> None:
        host = self.host
        if host is not None and host.line is self and self._admitted:
            for frame in ("welcome", *self._unsent) if not host.welcomed else self._unsent:
                host.process.call_later(WIRE_S, host.obey, frame)
            host.welcomed = True
            self._unsent.clear()

    # --- its life ---------------------------------------------------------------------------------------

    async def _live(self) -> None:
        while not self.over:
            sequence, event = await self._next_event()
            before, self._sequence = self.state, max(self._sequence, sequence)
            self.state, effects = step(before, event, self.process.time())
            if self.state is not before or isinstance(event, ev.HostSpawned):
                self.agentd.node.world.trace(self.agentd.node.name, event, before.phase, self.state.phase)
                await self._note(event, before)
            for effect in effects:
                self._carry_out(effect)
        self.agentd.look()

    async def _next_event(self) -> tuple[int, ev.GroupEvent]:
        while not self._events:
            self._wake = self.process.create_future()
            overdue = self.state.overdue_at
            timer = None if overdue is None else self.process.call_at(overdue, self.post, ev.Tick())
            await self._wake
            if timer is not None:
                timer.cancel()
        return self._events.popleft()

    async def _note(self, event: ev.GroupEvent, before: GroupState) -> None:
        state, journal = self.state, self.agentd.journal
        moved = state.phase is not before.phase
        ending = state.ending != before.ending
        row = Row(state, self._sequence, self.host)
        if moved or ending or state.round != before.round or isinstance(event, ev.HostSpawned | ev.Begin):
            await journal.write(self.role, row)
        elif isinstance(event, HISTORY):
            journal.post(self.role, row)
        if isinstance(event, ev.HostSpawned):
            self._admitted = True
            self._flush()

    def _carry_out(self, effect: ev.Effect) -> None:
        session = self.agentd.session
        match effect:
            case ev.StartHost():
                self.process.call_later(0.01, self._start_host)
            case ev.Sweep():
                self._sweep()
            case ev.HubReady(port):
                session.ready(self.role, self.state.local_world_size, port, self.state.round)
            case ev.HubGone(round_, port, unkillable):
                session.gone(self.role, round_, port, unkillable)
            case ev.HubFailed(round_, failures, ages, reason):
                self.agentd.node.world.judge.failed(round_)
                session.failed(self.role, round_, list(zip(failures, ages, strict=True)), reason)
            case ev.HubDone(round_):
                session.done(self.role, round_)
            case ev.HubLeave(reason):
                session.leave(self.role, reason, failed=True)
            case _:
                self._tell(effect)

    def _start_host(self) -> None:
        self.host = Host(self.agentd.node, self.role, self.process)
        self._heard, self._admitted = None, False
        self._unsent.clear()
        self._be_patient(MEET_TIMEOUT_S)
        self.post(ev.HostSpawned(1))

    def _sweep(self) -> None:
        if self.host is not None and not self.host.process.dead:
            self.host.die("its agentd ended it")
            return
        self.process.call_later(self.agentd.node.world.random.random() * 0.3, self._swept)

    def _swept(self) -> None:
        node = self.agentd.node
        for host in node.hosts:
            if host.role == self.role:
                host.die("swept")
        self.host = None
        stuck = any(host.role == self.role and host.stuck for host in node.former_hosts)
        self.post(ev.Swept("pid 9 in D state" if stuck else ""))


def as_member(left: Row, reports: list[ev.GroupEvent]) -> MemberState | None:
    """What the hub is told of the group; as `agentd.groups.left.as_member` tells it."""
    state = left.state
    unread = reports[left.sequence :] if state.host is HostState.LIVE else []
    newest = max((event.round for event in unread if isinstance(event, ev.WorkersStarted)), default=0)
    if state.phase in TERMINAL or not (newest or state.round or state.awaiting_place):
        return None
    if newest <= state.round <= state.gone_round:
        condition = MemberCondition.JOINING
    else:
        done = state.phase is Phase.DONE and newest <= state.round
        condition = MemberCondition.DONE if done else MemberCondition.RUNNING
    return MemberState(
        role=state.role,
        local_world_size=state.local_world_size,
        condition=condition,
        round=max(newest, state.round),
    )


class Host:
    """A host process with its workers, which run until they are told something, or told to fail."""

    def __init__(self, node: Node, role: str, parent: Process) -> None:
        self.node = node
        self.role = role
        self.parent = parent
        self.process = Process(node.world.clock, f"{node.name}/{role}")
        self.reports = node.reports.setdefault(role, [])
        self.line: Supervisor | None = None
        self.welcomed = False
        self.running = 0
        """The round whose workers live; 0: none."""
        self.stuck = False
        self.failing = False
        self._ready = False
        self._place: Assignment | None = None
        self._stop_round = 0
        self._kill_at: float | None = None
        self._stopping = False
        self._finishing = False
        node.hosts.append(self)
        self.process.call_later(0.05 + node.world.random.random() * 0.1, self.dial)
        self.process.call_later(10.0, self._not_met)

    # --- agentd -----------------------------------------------------------------------------------------

    def dial(self) -> None:
        agentd = self.node.agentd
        if agentd is not None and agentd.door_open:
            supervisor = agentd.supervisors.get(self.role)
            if supervisor is None:
                self.refused()
            else:
                agentd.process.call_soon(supervisor.meet, self)

    def agentd_died(self) -> None:
        """The connection broke; one that was never welcomed watches its parent."""
        self.line = None
        if not self.welcomed:
            self.process.call_soon(self._not_met)

    def refused(self) -> None:
        self._finish(self.node.world.spec.stop_grace or 0.0)

    def _not_met(self) -> None:
        if not self.welcomed:
            self.die("nobody answered")

    def report(self, event: ev.GroupEvent) -> None:
        self.reports.append(event)
        if self.line is not None:
            self.line.process.call_later(WIRE_S, self.line.read_on, self)

    def obey(self, frame: object) -> None:
        match frame:
            case "welcome":
                self._offer()
            case ev.SendPlacement(placement):
                if placement.round > self._round:
                    self._place = placement
                    if self._ready:
                        self._ready = False
                        self.process.call_later(0.02 + self.node.world.random.random() * 0.2, self._start)
            case ev.SendStopRound(round_):
                self._stop_round = max(self._stop_round, round_)
                if self.running and self._stop_round >= self._round:
                    self._stop(self.process.time() + (self.node.world.spec.stop_grace or 0.0))
            case ev.SendFinish(_, _, grace):
                self._finish(grace)

    # --- workers ----------------------------------------------------------------------------------------

    @property
    def _round(self) -> int:
        return self._place.round if self._place else 0

    def _offer(self) -> None:
        if self._finishing:
            self._exit()
            return
        self._ready = True
        self.report(ev.HostReady(self.node.world.next_port()))

    def _start(self) -> None:
        assert self._place is not None
        if self._finishing:
            return
        self.running = self._place.round
        self.failing = False
        self.node.restarts[self.role] = self._place.restart_count
        self.node.world.judge.workers_started(self, self._place)
        self.report(ev.WorkersStarted(self.running, ()))
        if self._stop_round >= self.running:
            self._stop(self.process.time())

    def fail(self) -> None:
        """One of the workers fails."""
        if self.running and not self.failing and not self.process.dead:
            self.failing = True
            self.process.call_soon(self._report_failure)

    def _report_failure(self) -> None:
        if self.running:
            failure = Failure(role=self.role, round=self.running, rank=0, pid=1, exit_code=1)
            self.report(ev.WorkersFailed(self.running, (failure,), (0.0,)))

    def succeed(self) -> None:
        """All workers end well."""
        if self.running and not (self.failing or self._stopping or self._finishing or self.process.stopped):
            round_, self.running = self.running, 0
            self.report(ev.WorkersDone(round_))
            self.process.call_later(0.05, self.die, "its work is done")

    def _stop(self, kill_at: float) -> None:
        """SIGTERM; a second one only shortens the grace."""
        now = self.process.time()
        if self._kill_at is None or kill_at < self._kill_at:
            self._kill_at = kill_at
            self.process.call_at(kill_at, self._all_gone)
        if not self._stopping:
            self._stopping = True
            self.process.call_at(now + self.node.world.stop_time(), self._all_gone)

    def _all_gone(self) -> None:
        if not self._stopping:
            return
        if self.stuck:
            if self._kill_at is not None and self.process.time() >= self._kill_at:
                self._stopping = False
                self.process.call_later(defaults.KILL_WAIT, self._give_up)
            return
        self._stopping, self._kill_at, self.running = False, None, 0
        self._offer()

    def _give_up(self) -> None:
        self.report(ev.WorkersUnkillable("pid 9 in D state"))
        self.die("unkillable workers")

    def _finish(self, grace: float) -> None:
        self._finishing = True
        if self.running:
            self._stop(self.process.time() + grace)
        elif not self._stopping:
            self._exit()

    def _exit(self) -> None:
        self.report(ev.HostEnding("asked to"))
        self.die("it was asked to end")

    def die(self, why: str) -> None:
        """The process ends, and its workers with it, unless nothing can kill them."""
        if self.process.dead:
            return
        self.node.world.trace(self.node.name, "host ends", why, self.running)
        self.process.kill()
        if not self.stuck:
            self.running = 0
        self.node.hosts.remove(self)
        self.node.former_hosts.append(self)
        agentd = self.node.agentd
        supervisor = agentd.supervisors.get(self.role) if agentd is not None else None
        if supervisor is not None:
            supervisor.process.call_later(2 * WIRE_S, supervisor.host_died, self)


assert KILL_PATIENCE_S > 0
