"""What happened: events of one node or of all of a run, read once or followed, and runs that have ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from agentd.api import historywire
from agentd.api.errors import AgentError, RunNotFound
from agentd.api.history import Event, EventKind, EventsPage, EventsRequest
from agentd.api.types import TERMINAL, RunStatus
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls, wire
from agentd_client.failures import FleetUnreachable, RunNotFoundAnywhere
from agentd_client.locate import unasked_nodes
from agentd_client.nodes import Node
from agentd_client.plan import Call, Emit, Pause, Plan
from agentd_client.report import NodeBack, NodeProblem, PerNode
from agentd_client.retry import call_each, call_one
from agentd_client.view import merge

LOOK_S: Final = 1.0
"""How often a followed node is asked for what is new."""
DEFAULT_LIMIT: Final = 100
PAGE_SIZE: Final = 500
_TURNS: Final = (EventKind.RUN_STARTED, EventKind.RUN_ENDED)
LOOKS_FOR_NODES: Final = 2
"""At every so many looks the run is asked for nodes that have joined."""


def events_call(target: str, request: EventsRequest, timeout_s: float) -> Call[service.ListEventsResponse]:
    """ListEvents."""
    message = historywire.events_request_to_message(request)
    return Call(target=target, method=wire.LIST_EVENTS, request=message, timeout_s=timeout_s)


def ended_runs_call(
    target: str, limit: int, page_token: str, timeout_s: float
) -> Call[service.ListEndedRunsResponse]:
    """ListEndedRuns."""
    message = service.ListEndedRunsRequest(page_size=limit, page_token=page_token)
    return Call(target=target, method=wire.LIST_ENDED_RUNS, request=message, timeout_s=timeout_s)


def list_events(target: str, request: EventsRequest, timeout_s: float) -> Plan[tuple[Event, ...]]:
    """All events a node tells, page by page."""
    answer = yield from call_one(events_call(target, request, timeout_s))
    return (yield from _rest(target, request, historywire.events_page_from_message(answer), timeout_s))


def list_ended_runs(target: str, limit: int, timeout_s: float) -> Plan[tuple[RunStatus, ...]]:
    """The runs that ended last, at most `limit`, the newest end first."""
    answer = yield from call_one(ended_runs_call(target, limit, "", timeout_s))
    return (yield from _rest_of_runs(target, limit, answer, timeout_s))


def ended_runs_of(
    nodes: Sequence[Node], limit: int, timeout_s: float
) -> Plan[PerNode[tuple[RunStatus, ...]]]:
    """The same of several nodes."""
    first = yield from calls.ask_nodes(
        nodes, [ended_runs_call(node.target, limit, "", timeout_s) for node in nodes]
    )
    answers: dict[str, tuple[RunStatus, ...]] = {}
    problems = dict(first.problems)
    for node in nodes:
        if (page := first.answers.get(node.name)) is None:
            continue
        try:
            answers[node.name] = yield from _rest_of_runs(node.target, limit, page, timeout_s)
        except AgentError as error:
            problems[node.name] = error
    return PerNode(answers=answers, problems=problems)


def _rest_of_runs(
    target: str, limit: int, answer: service.ListEndedRunsResponse, timeout_s: float
) -> Plan[tuple[RunStatus, ...]]:
    page = historywire.ended_runs_from_message(answer)
    found = list(page.runs)
    while page.next_page_token and len(found) < limit:
        call = ended_runs_call(target, limit - len(found), page.next_page_token, timeout_s)
        page = historywire.ended_runs_from_message((yield from call_one(call)))
        found.extend(page.runs)
    return tuple(found[:limit])


@dataclass(slots=True)
class _Reader:
    """How far one node's events are read."""

    node: Node
    request: EventsRequest
    node_id: str = ""
    """As its events have it."""
    problem: AgentError | None = None
    over: bool = False
    """The run has ended there."""
    again: bool = False
    """It may have begun there once more."""


def read_events(
    nodes: Sequence[Node], request: EventsRequest, *, follow: bool, timeout_s: float
) -> Plan[None]:
    """Emits each `Event` of the nodes, by time, and `NodeProblem` and `NodeBack` beside them.

    With `follow` it stays for what comes, also on nodes that join later: to the end of the run, or for ever
    where no run is named. Raises `RunNotFound` when no node that answered knows the run, and `Unreachable`
    when none answered.
    """
    readers = [_Reader(node, request) for node in nodes]
    events = yield from _look(readers, timeout_s)
    _raise_if_nobody_tells(readers, request)
    readers = [reader for reader in readers if not isinstance(reader.problem, RunNotFound)]
    newest = max((event.incarnation for event in events), default=0)
    yield from _emit(event for event in events if event.incarnation in (0, newest))
    for reader in readers:
        if reader.problem is not None:
            yield Emit(NodeProblem(reader.node.name, reader.problem, final=not follow))
        # From now on another use of the id is another story.
        reader.request = replace(reader.request, incarnation=newest, tail=0)
    looks = 0
    while follow and not (request.run_id and all(reader.over for reader in readers)):
        yield Pause(LOOK_S)
        looks += 1
        if request.run_id and looks % LOOKS_FOR_NODES == 0:
            readers += yield from _newcomers(readers, newest, timeout_s)
        known = {reader.node.name: reader.problem for reader in readers}
        asked = [reader for reader in readers if reader.again or not reader.over]
        yield from _emit((yield from _look(asked, timeout_s)))
        for reader in readers:
            yield from _told_change(reader, known[reader.node.name])


def _newcomers(readers: Sequence[_Reader], incarnation: int, timeout_s: float) -> Plan[list[_Reader]]:
    """Readers of the nodes that have joined the run; those of nodes that came back to it read on."""
    nodes = [reader.node for reader in readers if not reader.over and reader.problem is None]
    run_id = readers[0].request.run_id
    asked = [calls.status_call(node.target, run_id, timeout_s) for node in nodes]
    answers = (yield from calls.ask_nodes(nodes, asked)).answers
    found = [status for answer in answers.values() if (status := calls.newest(answer)) is not None]
    told = [status for status in found if status.incarnation == incarnation]
    if not told:
        return []
    status = merge(None, told)
    here = {node.node_id for node in status.nodes if node.phase not in TERMINAL}
    for reader in readers:
        # That it is there may be old news: only what the node itself tells begins its story again.
        reader.again = reader.over and reader.node_id in here
    new = unasked_nodes(status, [reader.node for reader in readers])
    return [_Reader(node, EventsRequest(run_id=run_id, incarnation=incarnation)) for node in new]


def _look(readers: Sequence[_Reader], timeout_s: float) -> Plan[list[Event]]:
    """What is new on each node, all asked at once."""
    asked = [
        events_call(reader.node.target, replace(reader.request, page_size=PAGE_SIZE), timeout_s)
        for reader in readers
    ]
    found: list[Event] = []
    outcomes = yield from call_each(asked)
    for reader, outcome in zip(readers, outcomes, strict=True):
        reader.problem = outcome if isinstance(outcome, AgentError) and not reader.again else None
        reader.again = False
        if isinstance(outcome, AgentError):
            # It had another use of the id, or has forgotten this one: nothing more will come.
            reader.over = reader.over or isinstance(outcome, RunNotFound)
            continue
        try:
            page = historywire.events_page_from_message(outcome)
            new = yield from _rest(reader.node.target, reader.request, page, timeout_s)
        except AgentError as error:
            reader.problem = error
            continue
        found.extend(new)
        if new:
            reader.request = replace(reader.request, after_id=new[-1].id)
            reader.node_id = new[-1].node_id
            turns = [event.kind for event in new if event.kind in _TURNS]
            if turns and reader.request.run_id:
                reader.over = turns[-1] == EventKind.RUN_ENDED
    return found


def _rest(target: str, request: EventsRequest, page: EventsPage, timeout_s: float) -> Plan[tuple[Event, ...]]:
    """The events of a page and of all that follow it."""
    found = list(page.events)
    while page.more and page.events:
        after = replace(request, after_id=page.events[-1].id, page_size=PAGE_SIZE, tail=0)
        answer = yield from call_one(events_call(target, after, timeout_s))
        page = historywire.events_page_from_message(answer)
        found.extend(page.events)
    return tuple(found)


def _emit(events: Iterable[Event]) -> Plan[None]:
    for event in sorted(events, key=lambda event: (event.time, event.node_id, event.id)):
        yield Emit(event)


def _told_change(reader: _Reader, before: AgentError | None) -> Plan[None]:
    if reader.problem is not None and before is None and not reader.over:
        yield Emit(NodeProblem(reader.node.name, reader.problem))
    elif reader.problem is None and before is not None:
        yield Emit(NodeBack(reader.node.name))


def _raise_if_nobody_tells(readers: Sequence[_Reader], request: EventsRequest) -> None:
    problems = {reader.node.name: reader.problem for reader in readers if reader.problem is not None}
    if len(problems) < len(readers):
        return
    real = {name: error for name, error in problems.items() if not isinstance(error, RunNotFound)}
    strangers = [name for name in problems if name not in real]
    if strangers:
        raise RunNotFoundAnywhere(request.run_id, strangers, real)
    if len(real) == 1:
        raise next(iter(real.values()))
    raise FleetUnreachable(real)
