"""Nodes come, lose their stream, come back, or are lost.

Of a node's sessions only the one with the highest epoch counts. A stream that broke makes the node
*detached*: its members keep their places until its window ends. Silence for a lease makes it lost.
"""

from __future__ import annotations

from agentd.api.errors import AgentError, InvalidSpec, NodeIdTaken, StaleSession
from agentd.api.types import Phase
from agentd.hub.messages import (
    MemberCondition,
    MemberState,
    RunFinished,
    SessionHello,
    StopRound,
)
from agentd.hub.reports import done
from agentd.hub.rounds import farewell, hear_of, membership_changed
from agentd.hub.state import (
    Absent,
    Beat,
    CloseSession,
    MemberKey,
    Node,
    RunState,
    Send,
)
from agentd.hub.turn import Turn, with_, without

ABSENT_LIMIT = 4096
"""Nodes that are remembered after they went."""


def refusal(state: RunState, hello: SessionHello, now: float) -> AgentError | None:
    """Why a node's session cannot be taken, if so; for another's node id it may be taken later."""
    for member in hello.members:
        if member.role not in state.plan.roles:
            return InvalidSpec("members.role", f"run {hello.run_id!r} has no role {member.role!r}")
    here = state.nodes.get(hello.node_id)
    if here is not None and here.agent_uid != hello.agent_uid:
        until = state.detached.get(hello.node_id)
        held_s = state.plan.lease if until is None else max(0.0, until - now)
        return NodeIdTaken(hello.node_id, hello.address, here.address, held_s=held_s, gone=until is not None)
    known = here or state.absent.get(hello.node_id)
    if known and known.agent_uid == hello.agent_uid and hello.session_epoch <= known.epoch:
        return StaleSession(hello.node_id)
    return None


def attach(turn: Turn, hello: SessionHello) -> None:
    """Take a session that was not refused: welcome it and agree on what its members have."""
    state = turn.state
    gone = state.absent.get(hello.node_id)
    if gone and gone.lost and state.plan.spec.no_rejoin:
        _turn_away(turn, hello, gone)
        return
    before = state.nodes.get(hello.node_id)
    sizes = {member.role: member.local_world_size for member in hello.members}
    node = Node(
        node_id=hello.node_id,
        agent_uid=hello.agent_uid,
        epoch=hello.session_epoch,
        address=hello.address,
        name=hello.node_name or hello.node_id,
        reattach_window=hello.reattach_window,
        sizes={**(before.sizes if before else {}), **sizes},
        told=_said_to_have(hello),
    )
    turn.change(
        nodes=with_(state.nodes, node.node_id, node),
        detached=without(state.detached, [node.node_id]),
        absent=without(state.absent, [node.node_id]),
    )
    turn.send([node.node_id], state.plan.welcome)
    if state.beat in (Beat.ENDING, Beat.ENDED):
        turn.send([node.node_id], farewell(state))
        return
    _hear_counts(turn, hello)
    # What it waits for it says again; until then it has nothing to offer.
    mine = turn.members_of(node.node_id)
    turn.no_longer_behind(mine)
    _park_waiting(turn, mine)
    turn.change(leaving=turn.state.leaving.difference(mine))
    _agree(turn, hello)


def detach(turn: Turn, node_id: str, epoch: int, own_fault: bool = False, silence: float = 0.0) -> None:
    """A stream ended: what runs goes on for the node's window, what only waited is forgotten.

    After a pause of the hub's own the window is a lease at least: nodes that left a hub which they took for
    dead are on their way back. A node that was silent for most of its lease has only the rest of that: what
    ended the stream was a timeout of the connection.
    """
    state = turn.state
    node = state.nodes.get(node_id)
    if node is None or node.epoch != epoch:
        return
    mine = turn.members_of(node_id)
    if state.beat in (Beat.ENDING, Beat.ENDED):
        # The end of its stream is its answer: a node closes when nothing of the run is left there.
        turn.change(owing=without(state.owing, mine))
        return
    # One that leaves is waited for while it owes an answer: who breaks a stream may still run all it ran.
    left = [key for key in mine if key in state.leaving and key not in state.owing]
    turn.forget(left)
    turn.change(leaving=state.leaving.difference(left))
    _park_waiting(turn, mine)
    state = turn.state
    if not any(key in state.live or key in state.owing or key in state.done for key in mine):
        _go(turn, node, "its stream ended", lost=False)
        return
    window = state.plan.lease if state.beat is Beat.STOPPING else node.reattach_window
    if own_fault:
        window = max(window, state.plan.lease)
    elif silence > state.plan.lease / 2:
        window = min(window, max(0.0, state.plan.lease - silence))
    turn.change(detached=with_(state.detached, node_id, turn.now + window))
    if window <= 0:
        lose_node(turn, node_id, "its stream broke")


def silent(turn: Turn, node_id: str, epoch: int) -> None:
    """An open session said nothing for a lease."""
    node = turn.state.nodes.get(node_id)
    if node is not None and node.epoch == epoch:
        lose_node(turn, node_id, f"no heartbeat for {turn.state.plan.lease:g} s")


def expire(turn: Turn) -> None:
    """Lose the nodes whose window to come back has ended."""
    for node_id in [node_id for node_id, until in turn.state.detached.items() if turn.now >= until]:
        if node_id in turn.state.detached:
            lose_node(turn, node_id, "its stream broke and it did not come back")


def lose_node(turn: Turn, node_id: str, why: str) -> None:
    """A node is lost, and with it the places of its members."""
    state = turn.state
    node = state.nodes[node_id]
    mine = turn.members_of(node_id)
    ran = any(key in state.live for key in mine)
    if ran or any(key in state.owing for key in mine):
        _gather(turn)
    turn.change(suspect_lost=state.suspect_lost or node_id in state.suspects)
    _go(turn, node, why, lost=True)
    if ran and turn.state.beat is Beat.RUNNING:
        membership_changed(turn, f"node {node.name} is lost: {why}")


def _go(turn: Turn, node: Node, why: str, *, lost: bool) -> None:
    mine = turn.members_of(node.node_id)
    turn.forget(mine)
    turn.no_longer_behind(mine)
    turn.change(leaving=turn.state.leaving.difference(mine), out=without(turn.state.out, mine))
    state = turn.state
    absent = Absent(
        agent_uid=node.agent_uid,
        epoch=node.epoch,
        address=node.address,
        name=node.name,
        reason=why,
        lost=lost,
    )
    remembered = without(state.absent, list(state.absent)[: len(state.absent) - ABSENT_LIMIT + 1])
    turn.change(
        nodes=without(state.nodes, [node.node_id]),
        detached=without(state.detached, [node.node_id]),
        absent=with_(remembered, node.node_id, absent),
    )
    turn.emit(CloseSession(node.node_id, node.epoch))


def _said_to_have(hello: SessionHello) -> dict[str, int]:
    """By role, the round that the node has a place in by its own word."""
    return {each.role: each.round for each in hello.members if each.condition is not MemberCondition.JOINING}


def _hear_counts(turn: Turn, hello: SessionHello) -> None:
    """An earlier hub may have announced more than its disk had taken when it died: nobody's budget grows."""
    state, spec = turn.state, turn.state.plan.spec
    restarts = max(state.restart_count, min(hello.restart_count, spec.max_restarts))
    changes = max(state.membership_changes, hello.membership_changes)
    if (restarts, changes) == (state.restart_count, state.membership_changes):
        return
    counted = state.failure_counted or (restarts > state.restart_count and hello.failure_counted)
    turn.change(restart_count=restarts, membership_changes=changes, failure_counted=counted)
    turn.journal()


def _gather(turn: Turn) -> None:
    """Losses within one heartbeat of the first are one change: the next round waits that long to form."""
    if turn.state.beat is Beat.RUNNING or not turn.state.gather_until:
        turn.change(gather_until=turn.now + turn.state.plan.heartbeat)


def _park_waiting(turn: Turn, mine: list[MemberKey]) -> None:
    """A waiting member loses its turn with its stream; one of the round being stopped is waited for."""
    state = turn.state
    parked = [key for key in mine if key in state.waiting]
    turn.forget(parked)
    if state.beat is Beat.STOPPING:
        survivors = {key: None for key in parked if key in state.order}
        turn.change(owing={**turn.state.owing, **survivors})


def _turn_away(turn: Turn, hello: SessionHello, gone: Absent) -> None:
    reason = f"node {gone.name} was lost ({gone.reason}) and the run has no_rejoin"
    turn.send([hello.node_id], RunFinished(phase=Phase.LOST, reason=reason))
    turn.emit(CloseSession(hello.node_id, hello.session_epoch))


def _agree(turn: Turn, hello: SessionHello) -> None:
    """Compare what the node says it has with what the hub gave it."""
    hear_of(turn, max((member.round for member in hello.members), default=0))
    told = {member.role: member for member in hello.members}
    broken: list[MemberKey] = []
    to_stop: dict[int, None] = {}
    for key in turn.members_of(hello.node_id):
        member = told.get(key.role)
        if key in turn.state.live and (member is None or _runs_another(member, turn.state.round)):
            broken.append(key)
        elif member is None:
            turn.forget([key])
        elif round_ := _round_to_stop(turn, key, member):
            to_stop[round_] = None
    if turn.state.beat is Beat.ENDING:
        return
    for key in broken:
        # Not before: who is done meanwhile is not the last of the round.
        if (member := told.get(key.role)) and (round_ := _left_over(turn, key, member)):
            to_stop[round_] = None
    for round_ in to_stop:
        reason = turn.state.reason or "the run went on without this node"
        turn.emit(Send(hello.node_id, StopRound(round=round_, reason=reason)))
    if broken:
        turn.forget(broken)
        membership_changed(turn, f"{turn.label(broken[0])} came back without its workers")


def _round_to_stop(turn: Turn, key: MemberKey, member: MemberState) -> int:
    """The round that this member must stop; 0: none."""
    state = turn.state
    placed = key in state.live or key in state.owing
    if placed and not _runs_another(member, state.round):
        if key in state.owing:
            return state.round
        if member.condition is MemberCondition.DONE:
            done(turn, key, member.round)
        return 0
    return _left_over(turn, key, member)


def _left_over(turn: Turn, key: MemberKey, member: MemberState) -> int:
    """The round that a member the hub had given up must stop; 0: none."""
    state = turn.state
    if key in state.done:
        return 0
    turn.forget([key])
    if member.condition is MemberCondition.JOINING:
        return 0
    finished = member.condition is MemberCondition.DONE and member.round == state.round
    if finished and state.beat is Beat.RUNNING and key in state.order:
        turn.change(done=with_(turn.state.done, key, None))
        return 0
    turn.change(behind=with_(turn.state.behind, key, member.round))
    return member.round


def _runs_another(member: MemberState, round_: int) -> bool:
    return member.condition is not MemberCondition.JOINING and member.round != round_
