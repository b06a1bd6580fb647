"""What the synchronous and the asyncio client have in common: every method as a plan.

A method of a client is one line over these, so the two forms cannot drift apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from grpc_health.v1 import health_pb2

from agentd.api import convert
from agentd.api.errors import (
    AgentError,
    DeadlineExceeded,
    NotRunning,
    RunNotFound,
    Unreachable,
)
from agentd.api.history import Event, EventsRequest
from agentd.api.types import (
    ControllerLease,
    Drain,
    DrainReport,
    DrainRequest,
    LogChunk,
    LogsRequest,
    NodeInfo,
    RunRequest,
    RunSpec,
    RunStatus,
    StopRequest,
    StopScope,
    StreamEnd,
)
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls, drains, history, lease
from agentd_client.environment import PassedEnvironment, choose_environment
from agentd_client.failures import FleetUnreachable, HubNotShared
from agentd_client.follow import PATIENCE_S, FollowOptions, follow
from agentd_client.launch import Launch, Launched, join_call, launch
from agentd_client.locate import Found, Place, find, tell, unasked_nodes
from agentd_client.logs import read_logs
from agentd_client.nodes import Node, by_name, node_of
from agentd_client.plan import Arrived, Emit, Ended, Open, Plan, receive
from agentd_client.report import PerNode, RunReport, Start
from agentd_client.retry import call_each
from agentd_client.view import merge


@dataclass(frozen=True, kw_only=True)
class AgentPlans:
    """One node: each RPC of its agentd."""

    node: Node
    timeout_s: float

    def run(self, request: RunRequest) -> Plan[Start]:
        return calls.run(self.node.target, request, self.timeout_s)

    def status(self, run_id: str) -> Plan[RunStatus]:
        return calls.status(self.node.target, run_id, self.timeout_s)

    def list_runs(self, include_ended: bool) -> Plan[tuple[RunStatus, ...]]:
        return calls.runs(self.node.target, include_ended, self.timeout_s)

    def watch(self, run_id: str, incarnation: int, after_revision: int) -> Plan[StreamEnd | None]:
        """Emits `RunStatus`, and returns why the node ended the stream."""
        call = calls.watch_call(self.node.target, run_id, incarnation, after_revision)
        yield Open("watch", call)
        while True:
            message = yield from _next_message(self.node.target, calls.SILENCE_S)
            match message:
                case service.WatchResponse() if message.HasField("status"):
                    yield Emit(convert.run_status_from_message(message.status))
                case service.WatchResponse() if message.HasField("end"):
                    return convert.stream_end_from_message(message.end)
                case None:
                    return None

    def logs(self, request: LogsRequest) -> Plan[StreamEnd | None]:
        """Emits `LogChunk`, and returns why the node ended the stream."""
        yield Open("logs", calls.logs_call(self.node.target, request))
        while True:
            message = yield from _next_message(self.node.target, calls.LOG_SILENCE_S)
            match message:
                case service.LogsResponse() if message.HasField("chunk"):
                    chunk: LogChunk = convert.log_chunk_from_message(message.chunk)
                    yield Emit(chunk)
                case service.LogsResponse() if message.HasField("end"):
                    return convert.stream_end_from_message(message.end)
                case None:
                    return None

    def stop(self, request: StopRequest) -> Plan[RunStatus]:
        return calls.stop(self.node.target, request, self.timeout_s)

    def signal(
        self, run_id: str, signum: int, ranks: Sequence[int], incarnation: int
    ) -> Plan[tuple[int, ...]]:
        return calls.signal(self.node.target, run_id, incarnation, signum, ranks, self.timeout_s)

    def get_node(self) -> Plan[NodeInfo]:
        return calls.get_node(self.node.target, self.timeout_s)

    def handover(self, pid: int) -> Plan[int]:
        return calls.handover(self.node.target, pid, self.timeout_s)

    def drain(self, request: DrainRequest) -> Plan[DrainReport]:
        return drains.drain(self.node.target, request, self.timeout_s)

    def undrain(self) -> Plan[Drain | None]:
        return drains.undrain(self.node.target, self.timeout_s)

    def renew_lease(self, run_id: str, incarnation: int) -> Plan[ControllerLease]:
        return lease.renew_at(self.node.target, run_id, incarnation, self.timeout_s)

    def list_events(self, request: EventsRequest) -> Plan[tuple[Event, ...]]:
        return history.list_events(self.node.target, request, self.timeout_s)

    def list_ended_runs(self, limit: int) -> Plan[tuple[RunStatus, ...]]:
        return history.list_ended_runs(self.node.target, limit, self.timeout_s)

    def describe(self, run_id: str, incarnation: int) -> Plan[tuple[RunStatus, RunSpec]]:
        return calls.describe(self.node.target, run_id, incarnation, self.timeout_s)

    def terminate(self, run_id: str, incarnation: int, grace: float | None, reason: str) -> Plan[RunStatus]:
        return calls.terminate(self.node.target, run_id, incarnation, grace, reason, self.timeout_s)

    def health(self, name: str) -> Plan[str]:
        (answer,) = yield from call_each([calls.health_call(self.node.target, name, self.timeout_s)])
        if isinstance(answer, AgentError):
            raise answer
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@dataclass(frozen=True, kw_only=True)
class FleetPlans:
    """Many nodes."""

    nodes: tuple[Node, ...]
    timeout_s: float
    patience_s: float = PATIENCE_S

    def run(
        self,
        spec: RunSpec,
        hub: str | None,
        request_id: str | None,
        environment: PassedEnvironment | Mapping[str, str] | None,
    ) -> Plan[Launched]:
        spec, nodes = self._placed(spec)
        return launch(
            Launch(
                spec=spec,
                nodes=nodes,
                hub=nodes[0] if hub is None else by_name(self.nodes, hub),
                request_id=request_id or new_request_id(),
                environment=_environment(environment),
                timeout_s=self.timeout_s,
            )
        )

    def find(self, run_id: str, incarnation: int) -> Plan[RunPlans]:
        found = yield from find(run_id, self.nodes, self.timeout_s)
        place = found.place(self.nodes)
        if incarnation and incarnation != place.incarnation:
            place = replace(place, incarnation=incarnation)
        return self.run_plans(place)

    def runs(self, include_ended: bool) -> Plan[PerNode[tuple[RunStatus, ...]]]:
        """Runs of each node."""
        answers: dict[str, tuple[RunStatus, ...]] = {}
        problems: dict[str, AgentError] = {}
        first_pages = yield from calls.ask_nodes(
            self.nodes,
            [calls.list_call(node.target, include_ended, "", self.timeout_s) for node in self.nodes],
        )
        problems.update(first_pages.problems)
        for node in self.nodes:
            page = first_pages.answers.get(node.name)
            if page is None:
                continue
            try:
                answers[node.name] = yield from calls.rest_of_runs(
                    node.target, include_ended, page, self.timeout_s
                )
            except AgentError as error:
                problems[node.name] = error
        return PerNode(answers=answers, problems=problems)

    def get_nodes(self) -> Plan[PerNode[NodeInfo]]:
        asked = [calls.node_call(node.target, self.timeout_s) for node in self.nodes]
        result = yield from calls.ask_nodes(self.nodes, asked)
        infos = {name: convert.node_info_from_message(answer) for name, answer in result.answers.items()}
        return PerNode(answers=infos, problems=result.problems)

    def drain(self, request: DrainRequest) -> Plan[PerNode[DrainReport]]:
        return drains.drain_nodes(self.nodes, request, self.timeout_s)

    def undrain(self) -> Plan[PerNode[Drain | None]]:
        return drains.undrain_nodes(self.nodes, self.timeout_s)

    def follow_drain(self) -> Plan[PerNode[NodeInfo]]:
        return drains.follow_drain(self.nodes, self.timeout_s, self.patience_s)

    def ended_runs(self, limit: int) -> Plan[PerNode[tuple[RunStatus, ...]]]:
        return history.ended_runs_of(self.nodes, limit, self.timeout_s)

    def events(self, request: EventsRequest, follow: bool) -> Plan[None]:
        """Of the nodes of the fleet, and of the run's other nodes as far as its status still names them."""
        nodes = list(self.nodes)
        if request.run_id:
            asked = [calls.status_call(node.target, request.run_id, self.timeout_s) for node in nodes]
            answers = (yield from calls.ask_nodes(nodes, asked)).answers
            told = [status for answer in answers.values() if (status := calls.newest(answer)) is not None]
            if told:
                nodes += unasked_nodes(merge(None, told), nodes)
        yield from history.read_events(nodes, request, follow=follow, timeout_s=self.timeout_s)

    def run_plans(self, place: Place, launched: Launched | None = None) -> RunPlans:
        return RunPlans(place=place, timeout_s=self.timeout_s, patience_s=self.patience_s, launched=launched)

    def started(self, launched: Launched) -> RunPlans:
        """The run that was just started: its hub knows most and is asked first."""
        wish = launched.launch
        place = Place(
            run_id=launched.status.run_id,
            incarnation=launched.status.incarnation,
            nodes=(wish.hub, *wish.others),
        )
        return self.run_plans(place, launched)

    def _placed(self, spec: RunSpec) -> tuple[RunSpec, tuple[Node, ...]]:
        """The spec with its node list, and those nodes. One node alone needs no list."""
        if spec.nodes:
            known = {node.name: node for node in self.nodes}
            return spec, tuple(known.get(name) or by_name(self.nodes, name) for name in spec.nodes)
        if len(self.nodes) > 1:
            return replace(spec, nodes=tuple(node.name for node in self.nodes)), self.nodes
        return spec, self.nodes


@dataclass(frozen=True, kw_only=True)
class RunPlans:
    """One run, wherever it is."""

    place: Place
    timeout_s: float
    patience_s: float
    launched: Launched | None = None

    def status(self) -> Plan[RunReport]:
        return tell(self.place, self.timeout_s)

    def follow(self, logs: LogsRequest | None, wait_s: float | None) -> Plan[RunReport]:
        options = FollowOptions(
            logs=None if logs is None else self._own(logs),
            launched=self.launched,
            wait_s=wait_s,
            patience_s=self.patience_s,
            timeout_s=self.timeout_s,
        )
        return follow(self.place, options)

    def read_logs(self, request: LogsRequest) -> Plan[PerNode[None]]:
        _, nodes = yield from self._all_nodes()
        return (yield from read_logs(self._own(request), nodes))

    def events(self, tail: int, follow: bool) -> Plan[None]:
        _, nodes = yield from self._all_nodes()
        request = EventsRequest(run_id=self.place.run_id, incarnation=self.place.incarnation, tail=tail)
        yield from history.read_events(nodes, request, follow=follow, timeout_s=self.timeout_s)

    def stop(self, grace: float | None, reason: str) -> Plan[RunReport]:
        """Any node passes it on to the hub; all are told, so that none waits for the hub's word."""
        result = yield from self._stop(self.place.nodes, grace, reason, StopScope.TERMINATE)
        status = merge(None, list(result.answers.values()))
        return RunReport(status=status, problems=result.problems)

    def leave(self, names: Iterable[str], grace: float | None, reason: str) -> Plan[PerNode[RunStatus]]:
        nodes = [by_name(self.place.nodes, name) for name in names]
        return self._stop(nodes, grace, reason, StopScope.LEAVE)

    def renew_lease(self) -> Plan[ControllerLease]:
        return lease.renew(self.place, self.timeout_s)

    def join(
        self, names: Iterable[str], environment: PassedEnvironment | Mapping[str, str] | None
    ) -> Plan[PerNode[Start]]:
        found, _ = yield from self._all_nodes()
        run = merge(None, list(found.told.values()))
        if not run.hub_address:
            raise HubNotShared(next(iter(found.told)))
        nodes = [node_of(name) for name in names]
        request_id, passed = new_request_id(), _environment(environment)
        asked = [join_call(node, run, request_id, passed, self.timeout_s) for node in nodes]
        result = yield from calls.ask_nodes(nodes, asked)
        _raise_if_none(result)
        starts = {name: calls.start_of(answer) for name, answer in result.answers.items()}
        return PerNode(answers=starts, problems=result.problems)

    def signal(self, signum: int, ranks: Sequence[int]) -> Plan[PerNode[tuple[int, ...]]]:
        found, nodes = yield from self._all_nodes()
        incarnation = found.newest.incarnation
        asked = [
            calls.signal_call(node.target, self.place.run_id, incarnation, signum, ranks, self.timeout_s)
            for node in nodes
        ]
        result = yield from calls.ask_nodes(nodes, asked)
        answers = {name: tuple(answer.ranks) for name, answer in result.answers.items() if answer.ranks}
        if not answers:
            _raise_if_none(result)
            raise NotRunning(self.place.run_id, str(found.newest.phase), ", ".join(map(str, ranks)))
        # A node without running workers has nothing to signal: no problem while others have.
        problems = _real_problems(result.problems, NotRunning, RunNotFound)
        return PerNode(answers=answers, problems=problems)

    def _stop(
        self, nodes: Sequence[Node], grace: float | None, reason: str, scope: StopScope
    ) -> Plan[PerNode[RunStatus]]:
        request = StopRequest(
            run_id=self.place.run_id,
            incarnation=self.place.incarnation,
            grace=grace,
            scope=scope,
            reason=reason,
        )
        asked = [calls.stop_call(node.target, request, self.timeout_s) for node in nodes]
        result = yield from calls.ask_nodes(nodes, asked)
        _raise_if_none(result)
        answers = {
            name: convert.run_status_from_message(answer.status) for name, answer in result.answers.items()
        }
        kept = result.problems if scope is StopScope.LEAVE else _real_problems(result.problems, RunNotFound)
        return PerNode(answers=answers, problems=kept)

    def _all_nodes(self) -> Plan[tuple[Found, list[Node]]]:
        """The nodes we know and those that joined without us."""
        found = yield from find(self.place.run_id, self.place.nodes, self.timeout_s)
        known = merge(None, list(found.told.values()))
        return found, [*self.place.nodes, *unasked_nodes(known, self.place.nodes)]

    def _own(self, request: LogsRequest) -> LogsRequest:
        return replace(request, run_id=self.place.run_id, incarnation=self.place.incarnation)


def new_request_id() -> str:
    """Made once for a wish, and kept through all its retries."""
    return os.urandom(16).hex()


def _next_message(target: str, silence_s: float) -> Plan[service.WatchResponse | service.LogsResponse | None]:
    event = yield from receive(silence_s)
    match event:
        case None:
            raise Unreachable(target, f"it said nothing for {silence_s:g} s")
        case Arrived(_, (service.WatchResponse() | service.LogsResponse()) as message):
            return message
        case Ended(_, AgentError() as error):
            raise error
    return None


def _environment(chosen: PassedEnvironment | Mapping[str, str] | None) -> PassedEnvironment:
    if chosen is None:
        return choose_environment()
    if isinstance(chosen, PassedEnvironment):
        return chosen
    return PassedEnvironment(local=chosen, remote=chosen)


def _raise_if_none(result: PerNode[object]) -> None:
    """When nobody did what was asked, that is an error: one node's own, or what all have in common."""
    if result.answers or not result.problems:
        return
    errors = list(result.problems.values())
    if len(errors) > 1 and all(isinstance(e, Unreachable | DeadlineExceeded) for e in errors):
        raise FleetUnreachable(result.problems)
    # A refusal tells more than a silence, and another refusal more than "not here".
    raise min(
        errors, key=lambda e: (isinstance(e, Unreachable | DeadlineExceeded), isinstance(e, RunNotFound))
    )


def _real_problems(problems: Mapping[str, AgentError], *harmless: type[AgentError]) -> dict[str, AgentError]:
    return {name: error for name, error in problems.items() if not isinstance(error, harmless)}
