"""How a run is started on its nodes: the hub's node first, then all others at once.

The request id is made once and kept through all retries. A refusal ends what this request started and
nothing else; a node that does not answer counts as missing, and may be asked again while the run waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from typing import cast

from agentd.api.errors import AgentError, RunNotFound
from agentd.api.targets import Target, parse_target
from agentd.api.types import TERMINAL, RunRequest, RunSpec, RunStatus, StopRequest, StopScope
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls
from agentd_client.environment import PassedEnvironment
from agentd_client.failures import HubNotShared, RunRefused
from agentd_client.nodes import Node
from agentd_client.plan import Call, Plan
from agentd_client.report import Start
from agentd_client.retry import call_each, is_absence


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A wish to have a run: what, where, and by which request."""

    spec: RunSpec
    nodes: tuple[Node, ...]
    """Nodes that take part, in the order of the spec's node list."""
    hub: Node
    request_id: str
    environment: PassedEnvironment = field(default_factory=PassedEnvironment)
    timeout_s: float = calls.DEFAULT_TIMEOUT_S

    @property
    def others(self) -> tuple[Node, ...]:
        """The nodes that are not the hub's."""
        return tuple(node for node in self.nodes if node.target != self.hub.target)

    def request(self, node: Node, incarnation: int = 0, hub_address: str = "") -> RunRequest:
        """The Run for one node. A hub that has no name in the node list takes no part itself."""
        return RunRequest(
            request_id=self.request_id,
            spec=self.spec,
            incarnation=incarnation,
            hub_address=hub_address,
            node_name=self.name_in_spec(node),
            passed_env=self.environment.of(node),
        )

    def name_in_spec(self, node: Node) -> str:
        """What the node list calls it; nothing if it is not there."""
        return node.name if node.name in self._listed else ""

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(self.spec.nodes)


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A run that has been started, and how each node took it."""

    launch: Launch
    status: RunStatus
    starts: Mapping[str, Start]
    problems: Mapping[str, AgentError]
    """Missing nodes, by name."""

    def missing(self) -> tuple[Node, ...]:
        """Nodes to be asked again."""
        return tuple(node for node in self.launch.others if node.name in self.problems)

    def run_call(self, node: Node) -> Call[service.RunResponse]:
        """The Run that a missing node gets."""
        request = self.launch.request(node, self.status.incarnation, self.status.hub_address)
        return calls.run_call(node.target, request, self.launch.timeout_s)

    def run_calls(self, nodes: Sequence[Node]) -> list[Call[service.RunResponse]]:
        """The same for many, whose Runs differ in little: the spec names all of them in each."""
        made = [self.run_call(node) for node in nodes[:1]]
        for node in nodes[1:]:
            first, request = made[0], service.RunRequest()
            request.CopyFrom(cast("service.RunRequest", first.request))
            request.node_name = self.launch.name_in_spec(node)
            if node.is_local_socket != nodes[0].is_local_socket:
                request.ClearField("passed_env")
                request.passed_env.update(self.launch.environment.of(node))
            made.append(replace(first, target=node.target, request=request))
        return made


def launch(wish: Launch) -> Plan[Launched]:
    """Start a run. Raises the hub's node's error, or `RunRefused` when another node refuses."""
    first = yield from calls.run(wish.hub.target, wish.request(wish.hub), wish.timeout_s)
    alone = Launched(launch=wish, status=first.status, starts={wish.hub.name: first}, problems={})
    if first.status.phase in TERMINAL or not wish.others:
        return alone
    if not _reaches(first.status.hub_address, wish.others):
        yield from undo(alone, {wish.hub.name: HubNotShared(wish.hub.name)})
    outcomes = yield from call_each(alone.run_calls(wish.others))
    starts, problems = dict(alone.starts), dict[str, AgentError]()
    for node, outcome in zip(wish.others, outcomes, strict=True):
        if isinstance(outcome, AgentError):
            problems[node.name] = outcome
        else:
            starts[node.name] = calls.start_of(outcome)
    launched = Launched(launch=wish, status=first.status, starts=starts, problems=problems)
    refusals = {name: error for name, error in problems.items() if not is_absence(error)}
    if refusals:
        yield from undo(launched, refusals)
    return launched


def join_call(
    node: Node, run: RunStatus, request_id: str, environment: PassedEnvironment, timeout_s: float
) -> Call[service.RunResponse]:
    """The Run by which a node joins a live run."""
    request = RunRequest(
        request_id=request_id,
        spec=RunSpec(run_id=run.run_id, roles=()),
        incarnation=run.incarnation,
        hub_address=run.hub_address,
        node_name=node.name,
        passed_env=environment.of(node),
        join=True,
    )
    return calls.run_call(node.target, request, timeout_s)


def undo(launched: Launched, refusals: Mapping[str, AgentError]) -> Plan[None]:
    """End what this request started, then raise the refusal."""
    wish, status = launched.launch, launched.status
    hub_is_ours = launched.starts[wish.hub.name].created
    request = StopRequest(
        run_id=status.run_id,
        incarnation=status.incarnation,
        scope=StopScope.TERMINATE if hub_is_ours else StopScope.LEAVE,
        reason=f"{', '.join(refusals)} refused the run",
    )
    ours = [
        node
        for node in (wish.hub, *wish.others)
        if _is_ours(node, launched, hub_is_ours)
        # One that first did not answer and then refused has nothing of the run.
        and (node.name in launched.starts or node.name not in refusals)
    ]
    outcomes = yield from call_each([calls.stop_call(node.target, request, wish.timeout_s) for node in ours])
    left = {
        node.name: outcome
        for node, outcome in zip(ours, outcomes, strict=True)
        if isinstance(outcome, AgentError)
        and not isinstance(outcome, RunNotFound)
        and node.name in launched.starts
    }
    ended = [node.name for node in ours if node.name in launched.starts and node.name not in left]
    raise RunRefused(status.run_id, refusals, ended, left)


def _is_ours(node: Node, launched: Launched, hub_is_ours: bool) -> bool:
    start = launched.starts.get(node.name)
    if start is not None:
        return start.created
    # It did not answer, and may have started its part all the same: a whole new run has no other owner.
    return hub_is_ours and is_absence(launched.problems.get(node.name, RunNotFound("", "")))


def _reaches(hub_address: str, others: tuple[Node, ...]) -> bool:
    """Whether others can be told this address: one of this machine serves only nodes of this machine."""
    if not hub_address:
        return False
    return not _is_of_one_machine(parse_target(hub_address)) or all(
        _is_of_one_machine(parse_target(node.target)) for node in others
    )


def _is_of_one_machine(target: Target) -> bool:
    return target.is_unix or target.host in ("localhost", "::1") or target.host.startswith("127.")
