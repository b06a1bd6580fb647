"""A run as people and programs read it: the hub's state as a `RunStatus`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agentd.api.types import TERMINAL, GroupStatus, NodeStatus, Phase, RunStatus
from agentd.core.lifecycle import least_advanced, worker_state
from agentd.hub import sentences
from agentd.hub.ranks import missing
from agentd.hub.state import Absent, Beat, MemberKey, Node, RunState
from agentd.hub.turn import Turn

COMPACT_LIMIT = 64
"""Nodes and names that a view pushed to every node has; the hub itself shows all."""

_PHASES = {
    Beat.FORMING: Phase.RENDEZVOUS,
    Beat.RUNNING: Phase.RUNNING,
    Beat.STOPPING: Phase.RESTARTING,
    Beat.ENDING: Phase.STOPPING,
}


def run_status(
    state: RunState,
    *,
    revision: int = 0,
    finished_at: float = 0.0,
    lease_until: float = 0.0,
    join_deadline: float = 0.0,
    wall_ahead: float = 0.0,
) -> RunStatus:
    """The whole run, with each node and group but no worker: those only their node knows.

    `wall_ahead`: seconds from the hub's own time, which the state has, to the wall clock's.
    """
    plan = state.plan
    phase = run_phase(state)
    label = Turn(state, 0.0).label
    return RunStatus(
        run_id=plan.spec.run_id,
        incarnation=plan.incarnation,
        phase=phase,
        round=state.round,
        restart_count=state.restart_count,
        max_restarts=plan.spec.max_restarts,
        min_members=plan.min_members,
        max_members=plan.max_members,
        missing=() if phase in TERMINAL else _missing(state),
        spares=tuple(label(key) for key in state.waiting) if state.beat is Beat.RUNNING else (),
        first_failure=state.first.failure if state.first else None,
        nodes=_nodes(state, wall_ahead),
        membership_changes=state.membership_changes,
        revision=revision,
        reason=sentences.joined(state) if state.beat is Beat.FORMING else state.reason,
        hub_address=plan.hub_address,
        from_hub=True,
        started_at=plan.started_at,
        finished_at=finished_at,
        labels=plan.spec.labels,
        controller_lease_until=lease_until,
        join_deadline=join_deadline,
    )


def run_phase(state: RunState) -> Phase:
    """Where the run as a whole is."""
    return _PHASES.get(state.beat) or state.outcome or Phase.LOST


def compact(status: RunStatus) -> RunStatus:
    """What every node is sent: of bounded size, since each of N nodes would get something about N nodes."""
    small = len(status.nodes) <= COMPACT_LIMIT
    return replace(
        status,
        nodes=tuple(replace(node, groups=()) for node in status.nodes) if small else (),
        missing=status.missing[:COMPACT_LIMIT],
        spares=status.spares[:COMPACT_LIMIT],
    )


def _missing(state: RunState) -> tuple[str, ...]:
    """Who is awaited: nobody while a round has all it may have, and no member that left."""
    if state.beat is Beat.RUNNING and len(state.live) + len(state.done) >= state.plan.max_members:
        return ()
    return tuple(missing(state, [*state.waiting, *state.live, *state.done, *state.owing]))


def _nodes(state: RunState, wall_ahead: float) -> tuple[NodeStatus, ...]:
    ranks = {key: rank for rank, key in enumerate(state.order)}
    # A hub of runs that others take part in has a session too, to know how they stand, and offers no member.
    here = [_node(state, node, ranks, wall_ahead) for node in state.nodes.values() if node.sizes]
    gone = [_absent(state, node_id, absent) for node_id, absent in state.absent.items()]
    return (*here, *gone)


def _node(state: RunState, node: Node, ranks: Mapping[MemberKey, int], wall_ahead: float) -> NodeStatus:
    groups = _groups(state, node, ranks)
    until = state.detached.get(node.node_id)
    silence = [] if until is None else [sentences.detached(until + wall_ahead)]
    return NodeStatus(
        node_id=node.node_id,
        address=_agentd_of(state, node.address),
        name=node.name,
        phase=least_advanced(group.phase for group in groups) if groups else Phase.PENDING,
        detached=until is not None,
        reason="; ".join([*silence, *(group.reason for group in groups if group.reason)]),
        groups=groups,
    )


def _groups(state: RunState, node: Node, ranks: Mapping[MemberKey, int]) -> tuple[GroupStatus, ...]:
    groups = []
    for role in state.plan.roles:
        key = MemberKey(node.node_id, role)
        phase = _group_phase(state, key, ranks)
        if phase is None:
            continue
        placed = key in state.live or key in state.done or key in state.owing or run_phase(state) in TERMINAL
        groups.append(
            GroupStatus(
                role=role,
                phase=phase,
                worker_state=worker_state(phase),
                group_rank=ranks.get(key) if placed else None,
                round=state.round if placed and key in ranks else 0,
                reason=state.out.get(key, "") or _where_workers_are(state, node, key),
                local_world_size=node.sizes.get(role, 0),
            )
        )
    return tuple(groups)


def _where_workers_are(state: RunState, node: Node, key: MemberKey) -> str:
    """Of external agents no node shows a worker, so the group says why."""
    if not state.plan.spec.external_agents or key not in state.live:
        return ""
    return sentences.external_workers(node.sizes.get(key.role, 0))


def _agentd_of(state: RunState, address: str) -> str:
    """Where the agentd of a member answers: an external agent has none, only a machine for MASTER_ADDR."""
    return "" if state.plan.spec.external_agents else address


def _group_phase(state: RunState, key: MemberKey, ranks: Mapping[MemberKey, int]) -> Phase | None:
    """The member's phase as far as the hub knows; None: it has no part in the run."""
    ending = state.beat in (Beat.ENDING, Beat.ENDED)
    if key in state.out:
        return Phase.LOST
    if key in state.owing:
        return Phase.STOPPING if ending or key in state.leaving else Phase.RESTARTING
    if ending:
        return state.outcome if key in ranks or key in state.waiting else None
    if key in state.live:
        return Phase.RUNNING
    if key in state.done:
        return Phase.DONE
    if key in state.waiting:
        return Phase.WAITING if state.beat is Beat.RUNNING else Phase.RENDEZVOUS
    return None


def _absent(state: RunState, node_id: str, absent: Absent) -> NodeStatus:
    return NodeStatus(
        node_id=node_id,
        address=_agentd_of(state, absent.address),
        name=absent.name,
        phase=Phase.LOST if absent.lost else Phase.STOPPED,
        reason=absent.reason,
    )
