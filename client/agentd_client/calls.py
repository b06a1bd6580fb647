"""One plan for each RPC: values in, values out. Everything bigger is made of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from grpc_health.v1 import health_pb2

from agentd.api import convert
from agentd.api.errors import AgentError, RunNotFound
from agentd.api.types import LogsRequest, NodeInfo, RunRequest, RunSpec, RunStatus, StopRequest
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import rendezvous_service_pb2 as rendezvous
from agentd_client import wire
from agentd_client.nodes import Node
from agentd_client.plan import AnswerT, Call, Plan
from agentd_client.report import PerNode, Start
from agentd_client.retry import call_each, call_one

DEFAULT_TIMEOUT_S: Final = 10.0
HEARTBEAT_S: Final = 2.0
"""How often a watched node says that it is still there."""
SILENCE_S: Final = 4 * HEARTBEAT_S
"""A stream silent for longer is taken as broken."""
LOG_SILENCE_S: Final = 30.0
"""The same for logs, whose heartbeats the server spaces."""
PAGE_SIZE: Final = 200


def run_call(target: str, request: RunRequest, timeout_s: float) -> Call[service.RunResponse]:
    """Run."""
    message = convert.run_request_to_message(request)
    return Call(target=target, method=wire.RUN, request=message, timeout_s=timeout_s)


def stop_call(target: str, request: StopRequest, timeout_s: float) -> Call[service.StopResponse]:
    """Stop."""
    message = convert.stop_request_to_message(request)
    return Call(target=target, method=wire.STOP, request=message, timeout_s=timeout_s)


def status_call(target: str, run_id: str, timeout_s: float) -> Call[service.StatusResponse]:
    """Status of one run, ended or not."""
    message = service.StatusRequest(run_id=run_id, include_ended=True)
    return Call(target=target, method=wire.STATUS, request=message, timeout_s=timeout_s)


def list_call(
    target: str, include_ended: bool, page_token: str, timeout_s: float
) -> Call[service.StatusResponse]:
    """Status of all runs, one page."""
    message = service.StatusRequest(include_ended=include_ended, page_size=PAGE_SIZE, page_token=page_token)
    return Call(target=target, method=wire.STATUS, request=message, timeout_s=timeout_s)


def describe_call(
    target: str, run_id: str, incarnation: int, timeout_s: float
) -> Call[rendezvous.DescribeResponse]:
    """Describe."""
    message = rendezvous.DescribeRequest(run_id=run_id, incarnation=incarnation)
    return Call(target=target, method=wire.DESCRIBE, request=message, timeout_s=timeout_s)


def signal_call(
    target: str, run_id: str, incarnation: int, signum: int, ranks: Sequence[int], timeout_s: float
) -> Call[service.SignalResponse]:
    """Signal."""
    message = service.SignalRequest(run_id=run_id, incarnation=incarnation, signal=signum, ranks=ranks)
    return Call(target=target, method=wire.SIGNAL, request=message, timeout_s=timeout_s)


def node_call(target: str, timeout_s: float) -> Call[service.GetNodeResponse]:
    """GetNode."""
    return Call(target=target, method=wire.GET_NODE, request=service.GetNodeRequest(), timeout_s=timeout_s)


def watch_call(
    target: str, run_id: str, incarnation: int, after_revision: int, heartbeat_s: float = HEARTBEAT_S
) -> Call[service.WatchResponse]:
    """Watch."""
    message = service.WatchRequest(
        run_id=run_id,
        incarnation=incarnation,
        after_revision=after_revision,
        heartbeat=convert.duration_to_message(heartbeat_s),
    )
    return Call(target=target, method=wire.WATCH, request=message)


def logs_call(target: str, request: LogsRequest) -> Call[service.LogsResponse]:
    """Logs."""
    return Call(target=target, method=wire.LOGS, request=convert.logs_request_to_message(request))


def health_call(target: str, name: str, timeout_s: float) -> Call[health_pb2.HealthCheckResponse]:
    """grpc.health.v1 Check."""
    message = health_pb2.HealthCheckRequest(service=name)
    return Call(target=target, method=wire.CHECK_HEALTH, request=message, timeout_s=timeout_s)


def run(target: str, request: RunRequest, timeout_s: float) -> Plan[Start]:
    """Start a node's part of a run."""
    answer = yield from call_one(run_call(target, request, timeout_s))
    return start_of(answer)


def status(target: str, run_id: str, timeout_s: float) -> Plan[RunStatus]:
    """One run as a node knows it."""
    answer = yield from call_one(status_call(target, run_id, timeout_s))
    found = newest(answer)
    if found is None:
        raise RunNotFound(run_id, target)
    return found


def runs(target: str, include_ended: bool, timeout_s: float) -> Plan[tuple[RunStatus, ...]]:
    """Every run a node knows, page by page."""
    page = yield from call_one(list_call(target, include_ended, "", timeout_s))
    return (yield from rest_of_runs(target, include_ended, page, timeout_s))


def rest_of_runs(
    target: str, include_ended: bool, page: service.StatusResponse, timeout_s: float
) -> Plan[tuple[RunStatus, ...]]:
    """The runs of a page and of all that follow it."""
    found = list(page.runs)
    while page.next_page_token:
        page = yield from call_one(list_call(target, include_ended, page.next_page_token, timeout_s))
        found.extend(page.runs)
    return tuple(convert.run_status_from_message(message) for message in found)


def stop(target: str, request: StopRequest, timeout_s: float) -> Plan[RunStatus]:
    """Ask a node to end a run, or its part of it."""
    answer = yield from call_one(stop_call(target, request, timeout_s))
    return convert.run_status_from_message(answer.status)


def signal(
    target: str, run_id: str, incarnation: int, signum: int, ranks: Sequence[int], timeout_s: float
) -> Plan[tuple[int, ...]]:
    """Signal workers of a node."""
    answer = yield from call_one(signal_call(target, run_id, incarnation, signum, ranks, timeout_s))
    return tuple(answer.ranks)


def get_node(target: str, timeout_s: float) -> Plan[NodeInfo]:
    """Who a node is and how it is."""
    answer = yield from call_one(node_call(target, timeout_s))
    return convert.node_info_from_message(answer)


def handover(target: str, pid: int, timeout_s: float) -> Plan[int]:
    """End a node's agentd and leave its workers to the next one."""
    request = service.HandoverRequest(pid=pid)
    call = Call(target=target, method=wire.HANDOVER, request=request, timeout_s=timeout_s)
    answer = yield from call_one(call)
    return int(answer.pid)


def describe(target: str, run_id: str, incarnation: int, timeout_s: float) -> Plan[tuple[RunStatus, RunSpec]]:
    """A run as its hub knows it, and the spec it was started with."""
    answer = yield from call_one(describe_call(target, run_id, incarnation, timeout_s))
    return convert.run_status_from_message(answer.status), convert.run_spec_from_message(answer.spec)


def terminate(
    target: str, run_id: str, incarnation: int, grace: float | None, reason: str, timeout_s: float
) -> Plan[RunStatus]:
    """Ask a run's hub to end it on every node."""
    message = rendezvous.TerminateRequest(
        run_id=run_id,
        incarnation=incarnation,
        grace=None if grace is None else convert.duration_to_message(grace),
        reason=reason,
    )
    answer = yield from call_one(
        Call(target=target, method=wire.TERMINATE, request=message, timeout_s=timeout_s)
    )
    return convert.run_status_from_message(answer.status)


def start_of(answer: service.RunResponse) -> Start:
    """A Run's answer as values."""
    return Start(status=convert.run_status_from_message(answer.status), created=answer.created)


def newest(answer: service.StatusResponse) -> RunStatus | None:
    """The newest incarnation in an answer about one run."""
    found = [convert.run_status_from_message(message) for message in answer.runs]
    return max(found, key=lambda status: status.incarnation, default=None)


def ask_nodes(
    nodes: Iterable[Node], calls: Sequence[Call[AnswerT]], pauses: Sequence[float] | None = None
) -> Plan[PerNode[AnswerT]]:
    """One call for each node, all at once; answers and problems by the nodes' names."""
    outcomes = yield from (call_each(calls) if pauses is None else call_each(calls, pauses))
    answers: dict[str, AnswerT] = {}
    problems: dict[str, AgentError] = {}
    for node, outcome in zip(nodes, outcomes, strict=True):
        if isinstance(outcome, AgentError):
            problems[node.name] = outcome
        else:
            answers[node.name] = outcome
    return PerNode(answers=answers, problems=problems)
