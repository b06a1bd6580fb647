"""The rendezvous of a run: `step(state, event, now) -> (state, effects)`. No clock, no I/O.

    FORMING -> RUNNING <-> STOPPING -> FORMING, and from each of them ENDING -> ENDED

`rounds` forms, stops and ends; `reports` hears members; `sessions` hears of nodes; `ranks` seats them;
`lease` ends what nobody looks after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agentd.api.types import Phase
from agentd.core.specs import Member
from agentd.hub import lease, reports, rounds, sessions
from agentd.hub.plan import RunPlan
from agentd.hub.ranks import assign
from agentd.hub.rounds import advance, finish, hasten
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
    Offer,
    Place,
    Publish,
    Received,
    Renewed,
    RunState,
    StreamEnded,
    Terminated,
    TimedFailure,
)
from agentd.hub.turn import Turn

__all__ = ["begin", "due", "refusal", "step"]


def begin(plan: RunPlan, now: float, record: HubRecord | None = None) -> RunState:
    """A run without members: a new one, or one whose hub has only its record left."""
    renewal = lease.granted(plan, now, record)
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
        left=frozenset(Member(*names) for names in record.left),
        order=tuple(MemberKey(*names) for names in record.order) or _members(record),
        join_deadline=now + plan.join_timeout,
        renewal=renewal,
    )
    if not record.members:
        return state
    if record.outcome:
        return _ending_still(_with_the_last_round(state, record, now, 0.0), record, now)
    if record.stopping:
        awaited = _with_the_last_round(state, record, now, plan.return_window)
        return _waiting_for_the_last_round(awaited, record, now)
    return _running_on(_with_the_last_round(state, record, now, plan.reattach_window), record)


def _with_the_last_round(state: RunState, record: HubRecord, now: float, window: float) -> RunState:
    """Its nodes may still run it, and have some time to come back."""
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
        join_deadline=None,
    )


def _members(record: HubRecord) -> tuple[MemberKey, ...]:
    return tuple(MemberKey(member.node_id, member.role) for member in record.members)


def _ending_still(state: RunState, record: HubRecord, now: float) -> RunState:
    """Its outcome stands; each of its members says that nothing of it runs there, or is not waited for."""
    grace = state.plan.stop_grace if record.end_grace is None else record.end_grace
    return replace(
        state,
        beat=Beat.ENDING,
        end_grace=record.end_grace,
        owing=dict.fromkeys(_members(record)),
        detached={},
        answer_deadline=now + grace + state.plan.answer_limit,
    )


def _running_on(state: RunState, record: HubRecord) -> RunState:
    """The round goes on with those who come back; whoever does not is lost."""
    members = _members(record)
    live: Mapping[MemberKey, Place | None] = dict.fromkeys(members)
    if members == state.order and all(member.master_port for member in record.members):
        # A member that the last hub could not tell its place is told now.
        offers = {
            MemberKey(member.node_id, member.role): Offer(member.local_world_size, member.master_port)
            for member in record.members
        }
        live = assign(replace(state, waiting=offers), state.order, state.round)
    return replace(state, beat=Beat.RUNNING, reason="", live=live)


def _waiting_for_the_last_round(state: RunState, record: HubRecord, now: float) -> RunState:
    """Each of its nodes says that it is gone, or is lost, before another one forms."""
    return replace(
        state,
        beat=Beat.STOPPING,
        reason="the hub began again",
        owing=dict.fromkeys(_members(record)),
        answer_deadline=now + state.plan.stop_grace + state.plan.answer_limit,
    )


def due(state: RunState) -> float | None:
    """When a tick has something to do though nothing happens."""
    times = (rounds.due(state), lease.ends_at(state))
    return min((at for at in times if at is not None), default=None)


def step(state: RunState, event: Event, now: float) -> tuple[RunState, tuple[Effect, ...]]:
    """The state after an event, and what to do about it, in order."""
    turn = Turn(state, now)
    match event:
        case Attached(hello):
            sessions.attach(turn, hello)
        case Received():
            reports.receive(turn, event)
        case StreamEnded(node_id, epoch, own_fault, silence):
            sessions.detach(turn, node_id, epoch, own_fault, silence)
        case NodeSilent(node_id, epoch):
            sessions.silent(turn, node_id, epoch)
        case Terminated(grace, reason):
            _terminate(turn, grace, reason)
        case Renewed(time):
            lease.renew(turn, time)
        case _:
            if state.beat not in (Beat.ENDING, Beat.ENDED):
                sessions.expire(turn)
            lease.expire(turn)
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
