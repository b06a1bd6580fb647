"""A hub's pure core with a hand on its clock: say things to it, read what it told whom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from agentd.api.types import Command, Failure, Phase, RendezvousSpec, RoleSpec, RunSpec, RunStatus
from agentd.hub.core import begin, due, refusal, step
from agentd.hub.messages import (
    AgedFailure,
    Assignment,
    HubMessage,
    MemberDone,
    MemberFailed,
    MemberLeaving,
    MemberMessage,
    MemberReady,
    MemberState,
    RoundGone,
    RunFinished,
    SessionHello,
    StopRound,
)
from agentd.hub.plan import make_plan
from agentd.hub.state import (
    Attached,
    CloseSession,
    Effect,
    Event,
    HubRecord,
    Journal,
    NodeSilent,
    Received,
    Send,
    StreamEnded,
    Terminated,
    Tick,
)
from agentd.hub.view import run_phase, run_status

M = TypeVar("M")
START = 1000.0


def make_spec(
    nodes: Iterable[str] = (),
    *,
    roles: Iterable[str] = ("default",),
    fewest: int = 0,
    most: int = 0,
    max_restarts: int = 0,
    max_membership_changes: int | None = None,
    stop_grace: float | None = 30.0,
    no_rejoin: bool = False,
    rendezvous: RendezvousSpec | None = None,
) -> RunSpec:
    return RunSpec(
        run_id="run",
        roles=tuple(RoleSpec(role=role, command=Command(entrypoint="train.py")) for role in roles),
        nodes=tuple(nodes),
        rendezvous=rendezvous or RendezvousSpec(min_members=fewest, max_members=most),
        max_restarts=max_restarts,
        max_membership_changes=max_membership_changes,
        stop_grace=stop_grace,
        no_rejoin=no_rejoin,
    )


class Rig:
    """One run of a hub. Node ids are the nodes' names, and each offer has a port of its own."""

    def __init__(self, spec: RunSpec, *, record: HubRecord | None = None) -> None:
        self.now = START
        self.state = begin(make_plan(spec, 7, hub_node_id="hub"), self.now, record)
        self.told: list[tuple[str, HubMessage]] = []
        self.records: list[HubRecord] = []
        self.closed: list[tuple[str, int]] = []
        self.log: list[Effect] = []
        self._ports = 20_000

    # --- what happens -------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        self.state, effects = step(self.state, event, self.now)
        for effect in effects:
            self.log.append(effect)
            if isinstance(effect, Send):
                self.told.append((effect.node_id, effect.message))
            elif isinstance(effect, Journal):
                self.records.append(effect.record)
            elif isinstance(effect, CloseSession):
                self.closed.append((effect.node_id, effect.epoch))

    def hello(
        self,
        node: str,
        *members: MemberState,
        epoch: int | None = None,
        uid: str = "",
        name: str = "",
        window: float = 5.0,
        restart_count: int = 0,
    ) -> None:
        hello = SessionHello(
            run_id="run",
            incarnation=7,
            node_id=node,
            agent_uid=uid or f"uid-{node}",
            session_epoch=self.epoch(node) + 1 if epoch is None else epoch,
            address=f"{node}.example:7460",
            node_name=name,
            members=members,
            reattach_window=window,
            restart_count=restart_count,
        )
        problem = refusal(self.state, hello, self.now)
        if problem is not None:
            raise problem
        self.post(Attached(hello))

    def say(self, node: str, message: MemberMessage, *, overdue: Iterable[str] = ()) -> None:
        self.post(Received(node, self.epoch(node), message, frozenset(overdue)))

    def ready(
        self, node: str, role: str = "default", *, size: int = 1, port: int = 0, round_: int | None = None
    ) -> None:
        """An offer of one that has heard all the hub said, or only of rounds up to `round_`."""
        self._ports += 1
        message = MemberReady(
            role=role,
            local_world_size=size,
            master_port=port or self._ports,
            round=self.state.round if round_ is None else round_,
        )
        self.say(node, message)

    def join(self, *nodes: str, role: str = "default", size: int = 1) -> None:
        for node in nodes:
            if node not in self.state.nodes:
                self.hello(node)
            self.ready(node, role, size=size)

    def gone(self, *nodes: str, role: str = "default", round_: int = 0, unkillable: str = "") -> None:
        for node in nodes:
            self._ports += 1
            number = round_ or self.state.round
            self.say(
                node,
                RoundGone(role=role, round=number, master_port=self._ports, unkillable=unkillable),
            )

    def fail(
        self, node: str, *, age: float = 0.0, rank: int = 0, role: str = "default", reason: str = "",
        round_: int | None = None, overdue: Iterable[str] = (),
    ) -> None:  # fmt: skip
        failures = (AgedFailure(failure=Failure(rank=rank, pid=11, exit_code=3), age=age),)
        message = MemberFailed(
            role=role,
            round=self.state.round if round_ is None else round_,
            failures=() if reason else failures,
            reason=reason,
        )
        self.say(node, message, overdue=overdue)

    def done(self, *nodes: str, role: str = "default") -> None:
        for node in nodes:
            self.say(node, MemberDone(role=role, round=self.state.round))

    def leave(self, node: str, role: str = "default") -> None:
        self.say(node, MemberLeaving(role=role, reason="asked to"))

    def give_up(self, node: str, role: str = "default") -> None:
        self.say(node, MemberLeaving(role=role, reason="its disk is full", failed=True))

    def break_stream(self, node: str) -> None:
        self.post(StreamEnded(node, self.epoch(node)))

    def silence(self, *nodes: str) -> None:
        for node in nodes:
            self.post(NodeSilent(node, self.epoch(node)))

    def terminate(self, grace: float | None = None, reason: str = "") -> None:
        self.post(Terminated(grace, reason))

    def wait(self, seconds: float) -> None:
        """Let time pass as the hub does: a tick whenever something is due, and one at the end."""
        end = self.now + seconds
        while (at := due(self.state)) is not None and at <= end:
            self.now = max(self.now, at)
            self.post(Tick())
            assert due(self.state) is None or due(self.state) != at, "a tick must settle what is due"
        self.now = end
        self.post(Tick())

    # --- what came of it ----------------------------------------------------------------------------

    def epoch(self, node: str) -> int:
        known = self.state.nodes.get(node) or self.state.absent.get(node)
        return known.epoch if known else 0

    def phase(self) -> Phase:
        return run_phase(self.state)

    @property
    def status(self) -> RunStatus:
        return run_status(self.state)

    def take(self, kind: type[M]) -> list[tuple[str, M]]:
        """Messages of a kind that were told since the last time, with whom."""
        found: list[tuple[str, M]] = [
            (node, message) for node, message in self.told if isinstance(message, kind)
        ]
        self.told = [(node, message) for node, message in self.told if not isinstance(message, kind)]
        return found

    def placed(self) -> dict[str, Assignment]:
        """Assignments since the last time, by node; nodes with several roles as node/role."""
        return {
            node if len(self.state.plan.roles) == 1 else f"{node}/{message.role}": message
            for node, message in self.take(Assignment)
        }

    def stopped(self) -> list[str]:
        """Nodes told to stop a round since the last time."""
        return [node for node, _ in self.take(StopRound)]

    def finished(self) -> dict[str, RunFinished]:
        return dict(self.take(RunFinished))
