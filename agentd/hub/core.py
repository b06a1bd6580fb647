"""The rendezvous of a run: `step(state, event, now) -> (state, effects)`. No clock, no I/O.

    FORMING -> RUNNING <-> STOPPING -> FORMING, and from each of them ENDING -> ENDED

`rounds` forms, stops and ends; `reports` hears members; `sessions` hears of nodes; `ranks` seats them.
"""

from __future__ import annotations

from dataclasses import replace

from agentd.api.types import Phase
from agentd.hub import reports, sessions
from agentd.hub.plan import RunPlan
from agentd.hub.rounds import advance, due, finish, hasten
from agentd.hub.sessions import refusal
from agentd.hub.state import (
    Attached,
    Beat,
    Effect,
    Event,
    HubRecord,
    MemberKey,
    Node,
    NodeSilent,
    Publish,
    Received,
    RunState,
    StreamEnded,
    Terminated,
    TimedFailure,
)
from agentd.hub.turn import Turn

__all__ = ["begin", "due", "refusal", "step"]


def begin(plan: RunPlan, now: float, record: HubRecord | None = None) -> RunState:
    """A run without members: a new one, or one whose hub has only its record left."""
    record = record or HubRecord()
    state = RunState(
        plan=plan,
        beat=Beat.ENDED if record.outcome else Beat.FORMING,
        round=record.round,
        restart_count=record.restart_count,
        membership_changes=record.membership_changes,
        first=TimedFailure(record.first_failure, now) if record.first_failure else None,
        outcome=record.outcome,
        reason=record.reason,
        join_deadline=now + plan.join_timeout,
    )
    if record.outcome or not record.members:
        return state
    state = _with_the_last_round(state, record, now)
    # Workers of agentd's own do not outlive it yet: with the hub's agentd a part of the round may be gone.
    if plan.spec.external_agents and not record.stopping:
        return _running_on(state)
    return _waiting_for_the_last_round(state, now)


def _with_the_last_round(state: RunState, record: HubRecord, now: float) -> RunState:
    """Its nodes may still run it, and have some time to come back."""
    window = state.plan.return_window
    nodes: dict[str, Node] = {}
    for member in record.members:
        known = nodes.get(member.node_id)
        nodes[member.node_id] = Node(
            node_id=member.node_id,
            agent_uid=member.agent_uid,
            epoch=0,
            address=member.address,
            name=member.name,
            reattach_window=window,
            sizes={**(known.sizes if known else {}), member.role: member.local_world_size},
        )
    return replace(
        state,
        nodes=nodes,
        detached=dict.fromkeys(nodes, now + window),
        order=tuple(MemberKey(member.node_id, member.role) for member in record.members),
        join_deadline=None,
    )


def _running_on(state: RunState) -> RunState:
    """The round goes on with those who come back; whoever does not is lost."""
    return replace(state, beat=Beat.RUNNING, reason="", live=dict.fromkeys(state.order))


def _waiting_for_the_last_round(state: RunState, now: float) -> RunState:
    """Each of its nodes says that it is gone, or is lost, before another one forms."""
    return replace(
        state,
        beat=Beat.STOPPING,
        reason="the hub began again",
        owing=dict.fromkeys(state.order),
        answer_deadline=now + state.plan.stop_grace + state.plan.answer_limit,
    )


def step(state: RunState, event: Event, now: float) -> tuple[RunState, tuple[Effect, ...]]:
    """The state after an event, and what to do about it, in order."""
    turn = Turn(state, now)
    match event:
        case Attached(hello):
            sessions.attach(turn, hello)
        case Received():
            reports.receive(turn, event)
        case StreamEnded(node_id, epoch, own_fault):
            sessions.detach(turn, node_id, epoch, own_fault)
        case NodeSilent(node_id, epoch):
            sessions.silent(turn, node_id, epoch)
        case Terminated(grace, reason):
            _terminate(turn, grace, reason)
        case _:
            if state.beat not in (Beat.ENDING, Beat.ENDED):
                sessions.expire(turn)
    advance(turn)
    if turn.state is not state:
        turn.emit(Publish())
    return turn.state, tuple(turn.effects)


def _terminate(turn: Turn, grace: float | None, reason: str) -> None:
    if turn.state.beat is Beat.ENDING:
        if grace is not None:
            hasten(turn, grace)
    elif turn.state.beat is not Beat.ENDED:
        finish(turn, Phase.STOPPED, reason or "somebody asked for the end of the run", grace)
