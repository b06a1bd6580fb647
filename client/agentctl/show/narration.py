"""What an attached user is told while a run lives: one line for each thing that changed. Pure."""

from __future__ import annotations

from agentctl.show.words import exit_of, failed_one, plural
from agentd.api.types import TERMINAL, Phase, RunStatus

_UNDER_WAY = (Phase.PENDING, Phase.RENDEZVOUS)
_BEFORE_WORKERS = (*_UNDER_WAY, Phase.RESTARTING)
"""A group that still shows one of these under a new round tells the workers of its last one."""


def narrate(before: RunStatus | None, now: RunStatus) -> list[str]:
    """The news in `now`, for someone who has seen `before`."""
    if now.phase in TERMINAL:
        return []  # the end report tells it all
    lines: list[str] = []
    failure = now.first_failure
    if failure is not None and (before is None or before.first_failure != failure):
        lines.append(
            f"{failed_one(failure)} on node {failure.node_id} failed "
            f"in round {failure.round}: {exit_of(failure) or failure.message}"
        )
    lines += [line for line in refusals(now) if before is None or line not in refusals(before)]
    if now.phase is Phase.RUNNING and _is_whole(now) and (before is None or not _same_round(before, now)):
        lines.append(_running_line(now))
    if now.phase is Phase.RESTARTING and (before is None or before.phase is not Phase.RESTARTING):
        lines.append(
            f"round {now.round} is being stopped to form another: {now.reason or 'membership changed'}"
        )
    if _stops_workers(now) and (before is None or not _stops_workers(before)):
        lines.append(f"workers are being stopped: {now.reason or 'asked to'}")
    if before is not None and now.spares != before.spares and now.spares:
        lines.append(f"spare, waiting for the next round: {', '.join(now.spares)}")
    return lines


def refusals(status: RunStatus) -> list[str]:
    """Nodes that have given up by themselves, for a reason that is not the run's."""
    if status.phase is Phase.STOPPING:
        return []
    reasons = {
        node.name or node.node_id: node.reason or next((g.reason for g in node.groups if g.reason), "")
        for node in status.nodes
        if node.phase is Phase.FAILED
    }
    return [
        f"node {name} has no part: {why}" for name, why in reasons.items() if why not in ("", status.reason)
    ]


def _stops_workers(status: RunStatus) -> bool:
    """Whether a worker is made to end. Of those that ended by themselves the end report tells soon enough."""
    groups = [group for node in status.nodes for group in node.groups if group.phase is Phase.STOPPING]
    workers = [worker for group in groups for worker in group.workers]
    return status.phase is Phase.STOPPING and any(w.exit_code is None and w.signal is None for w in workers)


def _waiting(status: RunStatus) -> bool:
    return status.phase in _UNDER_WAY and bool(status.missing or status.min_members > 1)


def waiting_line(status: RunStatus) -> str:
    """Who is there and who is missing while a round forms; empty when nobody is waited for."""
    if not _waiting(status):
        return ""
    there = _there(status)
    line = f"waiting for nodes: {len(there)} of {_wanted(status, len(there))} there"
    if there:
        line += f" ({', '.join(there)})"
    if status.missing:
        line += f", missing: {', '.join(status.missing)}"
    return line


def _wanted(status: RunStatus, there: int) -> str:
    fewest, most = status.min_members, status.max_members
    return f"{fewest} to {most}" if fewest < most else str(max(fewest, there))


def _there(status: RunStatus) -> list[str]:
    names = [n.name or n.node_id for n in status.nodes if n.phase not in TERMINAL and not n.detached]
    return [
        name
        for name in names
        if not any(lacking == name or lacking.startswith(f"{name}/") for lacking in status.missing)
    ]


def _is_whole(status: RunStatus) -> bool:
    """Whether every member's workers are known to run: nodes tell theirs one after the other."""
    if any(node.phase is Phase.RUNNING and not node.groups for node in status.nodes):
        return False
    groups = [
        group
        for node in status.nodes
        for group in node.groups
        if group.phase not in (Phase.WAITING, *TERMINAL)
    ]
    return any(group.phase is Phase.RUNNING for group in groups) and all(
        group.round == status.round and group.workers and group.phase not in _BEFORE_WORKERS
        for group in groups
    )


def _same_round(before: RunStatus, now: RunStatus) -> bool:
    return before.round == now.round and before.phase is Phase.RUNNING and _is_whole(before)


def _running_line(status: RunStatus) -> str:
    workers = sum(
        len(group.workers)
        for node in status.nodes
        for group in node.groups
        if group.phase is Phase.RUNNING and group.round == status.round
    )
    nodes = [
        node.name or node.node_id
        for node in status.nodes
        if any(group.workers and group.phase is Phase.RUNNING for group in node.groups)
    ]
    line = f"round {status.round}: {plural(workers, 'worker')} on {', '.join(nodes)}"
    if status.restart_count:
        line += f", restart {status.restart_count} of {status.max_restarts}"
    return line
