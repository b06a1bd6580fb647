"""How a run is found, and told whole, by people who only know its id and some of its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentd.api import convert
from agentd.api.errors import AgentError, RunNotFound
from agentd.api.types import NodeStatus, RunStatus
from agentd.quickdata import dataclass
from agentd_client import calls
from agentd_client.failures import FleetUnreachable, RunNotFoundAnywhere
from agentd_client.nodes import Node, by_name
from agentd_client.plan import Plan, call_all
from agentd_client.report import RunReport
from agentd_client.retry import PAUSES, call_each
from agentd_client.view import merge, with_silent_nodes


@dataclass(frozen=True, kw_only=True)
class Place:
    """A run and the nodes through which it is reached."""

    run_id: str
    incarnation: int
    """0: the newest."""
    nodes: tuple[Node, ...]
    """The best informed first."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the nodes asked tell of a run, each for itself, and why others do not."""

    told: Mapping[str, RunStatus]
    problems: Mapping[str, AgentError]

    @property
    def newest(self) -> RunStatus:
        """A status of the newest incarnation."""
        return max(self.told.values(), key=lambda status: status.incarnation)

    def place(self, asked: Sequence[Node]) -> Place:
        """Where to follow this run: its hub first, then who knows it, then who may come back."""
        ranked = sorted(asked, key=self._rank)
        return Place(run_id=self.newest.run_id, incarnation=self.newest.incarnation, nodes=tuple(ranked))

    def _rank(self, node: Node) -> int:
        status = self.told.get(node.name)
        if status is None:
            return 2
        return 0 if status.from_hub else 1


def find(
    run_id: str, nodes: Sequence[Node], timeout_s: float, pauses: Sequence[float] = PAUSES
) -> Plan[Found]:
    """Ask every node for a run.

    Raises `RunNotFound` when no node that answered knows it and `Unreachable` when none answered.
    """
    outcomes = yield from call_each([calls.status_call(n.target, run_id, timeout_s) for n in nodes], pauses)
    told: dict[str, RunStatus] = {}
    problems: dict[str, AgentError] = {}
    for node, outcome in zip(nodes, outcomes, strict=True):
        status = None if isinstance(outcome, AgentError) else calls.newest(outcome)
        if status is not None:
            told[node.name] = status
        elif isinstance(outcome, AgentError) and not isinstance(outcome, RunNotFound):
            problems[node.name] = outcome
    if told:
        return Found(told=told, problems=problems)
    strangers = [node.name for node in nodes if node.name not in problems]
    if strangers:
        raise RunNotFoundAnywhere(run_id, strangers, problems)
    if len(problems) == 1:
        raise next(iter(problems.values()))
    raise FleetUnreachable(problems)


def tell(place: Place, timeout_s: float, pauses: Sequence[float] = PAUSES) -> Plan[RunReport]:
    """The whole run: its hub asked for its state, each of its nodes for its workers."""
    found = yield from find(place.run_id, place.nodes, timeout_s, pauses)
    described, hub_problem = yield from _describe(place, found, timeout_s)
    told, problems = dict(found.told), dict(found.problems)
    known = merge(described, list(told.values()))
    more = unasked_nodes(known, place.nodes)
    outcomes = yield from call_all([calls.status_call(n.target, place.run_id, timeout_s) for n in more])
    for node, outcome in zip(more, outcomes, strict=True):
        if isinstance(outcome, AgentError):
            problems[node.name] = outcome
            continue
        status = calls.newest(outcome)
        if status is not None:
            told[node.name] = status
    whole = merge(described, list(told.values()))
    if not whole.from_hub:
        whole = with_silent_nodes(whole, problems)
    told_already = {str(problem) for problem in problems.values()}
    if hub_problem is not None and not whole.from_hub and str(hub_problem) not in told_already:
        problems.setdefault(f"hub {whole.hub_address}", hub_problem)
    return RunReport(status=whole, problems=problems)


def unasked_nodes(status: RunStatus, asked: Sequence[Node]) -> list[Node]:
    """Nodes of the run whose workers nobody has told, by the address others know them by."""
    targets, names = {node.target for node in asked}, {node.name for node in asked}
    return [
        Node(node.name or node.node_id, node.address)
        for node in status.nodes
        if node.address
        and node.address not in targets
        and node.name not in names
        and not _tells_workers(node)
    ]


def _describe(
    place: Place, found: Found, timeout_s: float
) -> Plan[tuple[RunStatus | None, AgentError | None]]:
    """The hub's word. A hub that has answered is asked by the way that is known to work."""
    newest = found.newest
    targets = [by_name(place.nodes, name).target for name, status in found.told.items() if status.from_hub]
    if newest.hub_address:
        targets.append(newest.hub_address)
    problem: AgentError | None = None
    for target in dict.fromkeys(targets):
        (outcome,) = yield from call_all(
            [calls.describe_call(target, place.run_id, newest.incarnation, timeout_s)]
        )
        if not isinstance(outcome, AgentError):
            return convert.run_status_from_message(outcome.status), None
        problem = outcome
    return None, problem


def _tells_workers(node: NodeStatus) -> bool:
    return any(worker.pid for group in node.groups for worker in group.workers)
