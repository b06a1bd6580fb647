"""A run as this node shows it: what the hub says of the whole, and what only this node knows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from agentd.api.types import TERMINAL, GroupStatus, NodeStatus, Phase, RunSpec, RunStatus
from agentd.core.conditions import Condition
from agentd.core.lifecycle import least_advanced
from agentd.core.ranks import named
from agentd.core.specs import member_bounds
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True)
class PartEnd:
    """How this node's part ends, or ended, while nobody said that the run is over."""

    phase: Phase
    reason: str


def without_hub(spec: RunSpec, incarnation: int, hub_address: str, started_at: float) -> RunStatus:
    """A run of which the hub has said nothing yet."""
    lowest, highest = member_bounds(spec)
    return RunStatus(
        run_id=spec.run_id,
        incarnation=incarnation,
        max_restarts=spec.max_restarts,
        min_members=lowest,
        max_members=highest,
        hub_address=hub_address,
        started_at=started_at,
        labels=spec.labels,
    )


def own_part(
    node_id: str,
    address: str,
    name: str,
    groups: tuple[GroupStatus, ...],
    hub_problem: str,
    conditions: Mapping[str, str] | None = None,
) -> NodeStatus:
    """This node's entry."""
    phase = least_advanced(group.phase for group in groups)
    reasons = [hub_problem] if hub_problem else _reasons(groups, phase)
    return NodeStatus(
        node_id=node_id,
        address=address,
        phase=phase,
        detached=bool(hub_problem),
        reason="; ".join(reasons),
        groups=groups,
        name=name,
        conditions={**(conditions or {}), **_unkept_logs(groups)},
    )


def _unkept_logs(groups: Iterable[GroupStatus]) -> Mapping[str, str]:
    """Workers that have no log folder, and why that can be."""
    ranks = {worker.rank for group in groups for worker in group.workers if not worker.log_dir}
    if not ranks:
        return {}
    whose = "its" if len(ranks) == 1 else "their"
    sentence = f"the disk took no log folder when {named(ranks)} started: {whose} output is dropped"
    return {Condition.LOGS_NOT_KEPT.value: sentence}


def compose(hub: RunStatus, own: NodeStatus, end: PartEnd | None, *, hub_here: bool) -> RunStatus:
    """The status of the run. It is terminal only when nothing is left on this node."""
    status = replace(hub, nodes=_with_own(hub.nodes, own), from_hub=hub_here and hub.from_hub)
    over = all(group.phase in TERMINAL for group in own.groups)
    if hub.phase in TERMINAL:
        return status if over else replace(status, phase=Phase.STOPPING)
    if end is not None and not hub_here:
        return replace(status, phase=end.phase if over else Phase.STOPPING, reason=end.reason)
    if not hub.from_hub:
        # On its own node only the hub can say that the run is over, and it is about to speak.
        phase = Phase.STOPPING if hub_here and own.phase in TERMINAL else own.phase
        return replace(status, phase=phase, reason=own.reason)
    return status


def part_end_of(groups: Iterable[GroupStatus]) -> PartEnd | None:
    """How a part ended whose groups have all ended by themselves."""
    groups = tuple(groups)
    if not groups or any(group.phase not in TERMINAL for group in groups):
        return None
    worst = least_advanced(group.phase for group in groups)
    return PartEnd(worst, next(group.reason for group in groups if group.phase is worst))


def _reasons(groups: tuple[GroupStatus, ...], phase: Phase) -> list[str]:
    """Why the node is where it is: the reasons of its slowest groups, each once."""
    return list(dict.fromkeys(group.reason for group in groups if group.phase is phase and group.reason))


def _with_own(nodes: tuple[NodeStatus, ...], own: NodeStatus) -> tuple[NodeStatus, ...]:
    if not own.groups:
        # The hub of a run that this node takes no part in.
        return tuple(node for node in nodes if node.node_id != own.node_id)
    if any(node.node_id == own.node_id for node in nodes):
        return tuple(_merged(node, own) if node.node_id == own.node_id else node for node in nodes)
    return (*nodes, own)


def _merged(told: NodeStatus, own: NodeStatus) -> NodeStatus:
    if own.address and own.name:
        return own
    return replace(own, address=own.address or told.address, name=own.name or told.name)
