"""One picture of a run out of what its hub and its nodes tell. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from agentd.api.types import TERMINAL, Failure, NodeStatus, RunStatus

HEARSAY = "does not answer; this is what others last heard of it"


def merge(described: RunStatus | None, told: Sequence[RunStatus]) -> RunStatus:
    """The run: its state from the hub, its workers from their own nodes.

    Without a hub's word the best informed node stands in for it. Only the newest incarnation counts.
    """
    newest = max(status.incarnation for status in _all(described, told))
    hub = described if described is not None and described.incarnation == newest else None
    nodes_say = [status for status in told if status.incarnation == newest]
    base = hub or max(nodes_say, key=_authority)
    return replace(
        base,
        nodes=_merge_nodes(base, nodes_say),
        first_failure=(base.from_hub and base.first_failure)
        or _earliest(status.first_failure for status in (base, *nodes_say)),
        hub_unreachable_since=0.0 if base.from_hub else _first_silence(nodes_say),
        hub_address=base.hub_address or next((s.hub_address for s in nodes_say if s.hub_address), ""),
    )


def with_silent_nodes(status: RunStatus, silent: Collection[str]) -> RunStatus:
    """Mark live nodes, by id, name or address, that do not answer while no hub vouches for them."""
    return replace(
        status,
        nodes=tuple(
            replace(node, detached=True, reason=HEARSAY)
            if node.phase not in TERMINAL and not {node.node_id, node.name, node.address}.isdisjoint(silent)
            else node
            for node in status.nodes
        ),
    )


def _all(described: RunStatus | None, told: Sequence[RunStatus]) -> list[RunStatus]:
    return [*told, *([described] if described is not None else [])]


def _authority(status: RunStatus) -> tuple[bool, int, int, bool, int]:
    return (
        status.from_hub,
        status.round,
        status.restart_count,
        status.phase in TERMINAL,
        len(status.nodes),
    )


def _merge_nodes(base: RunStatus, told: Sequence[RunStatus]) -> tuple[NodeStatus, ...]:
    """Each node once, in the order of their group ranks, then as they come."""
    seen: dict[tuple[str, str], NodeStatus] = {(node.node_id, ""): node for node in base.nodes}
    for status in told:
        if status is base:
            continue
        for node in status.nodes:
            key = (node.node_id, "")
            if key in seen and _is_another(seen[key], node):
                key = (node.node_id, node.name)
            known = seen.get(key)
            seen[key] = node if known is None else _join(known, node, from_hub=base.from_hub)
    return tuple(sorted(seen.values(), key=_first_group_rank))


def _is_another(one: NodeStatus, other: NodeStatus) -> bool:
    """Two nodes of the list whose agentds were started with one node id: the hub has refused the second."""
    return bool(one.name and other.name) and one.name != other.name


def _first_group_rank(node: NodeStatus) -> float:
    return min((g.group_rank for g in node.groups if g.group_rank is not None), default=float("inf"))


def _join(known: NodeStatus, other: NodeStatus, *, from_hub: bool) -> NodeStatus:
    """Two views of one node: workers from the one that sees them, the link from the hub if it tells."""
    detail = other if _detail(other) > _detail(known) else known
    address, name = known.address or other.address, known.name or other.name
    detached = known.detached if from_hub else detail.detached
    reason = detail.reason or known.reason
    conditions = {**known.conditions, **other.conditions}
    if (address, name, detached, reason, conditions) == (
        detail.address,
        detail.name,
        detail.detached,
        detail.reason,
        detail.conditions,
    ):
        # So it is of nearly all nodes of a large run, and a copy is what merging costs.
        return detail
    return replace(
        detail, address=address, name=name, detached=detached, reason=reason, conditions=conditions
    )


def _detail(node: NodeStatus) -> tuple[int, int, int]:
    """How much is known of a node's workers; the hub knows their places only."""
    alive = newest_round = workers = 0
    for group in node.groups:
        newest_round = max(newest_round, group.round)
        workers += len(group.workers)
        for worker in group.workers:
            if worker.pid:
                alive += 1
    return alive, newest_round, workers


def _first_silence(told: Sequence[RunStatus]) -> float:
    """Since when all of the nodes have been without the hub; 0 if it answers one of them."""
    since = [status.hub_unreachable_since for status in told if status.phase not in TERMINAL]
    return min(since, default=0.0)


def _earliest(failures: Iterable[Failure | None]) -> Failure | None:
    return min((failure for failure in failures if failure), key=lambda f: f.time, default=None)
