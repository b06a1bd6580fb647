"""A run followed to its end: snapshots, output and missing nodes asked again, as one stream of events."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from agentd.api.errors import AgentError
from agentd.api.types import TERMINAL, LogsRequest, NodeStatus, Phase, RunStatus
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls
from agentd_client.failures import StillRunning
from agentd_client.launch import Launched, undo
from agentd_client.locate import Place, tell
from agentd_client.logs import PREFIX as LOGS_PREFIX
from agentd_client.logs import LogReading
from agentd_client.nodes import Node
from agentd_client.plan import Arrived, Emit, Ended, Open, Plan, StreamEvent, call_all, clock, receive
from agentd_client.report import NodeProblem, NodeStarted, RunOver, RunReport
from agentd_client.retry import is_absence
from agentd_client.watching import PREFIX as WATCH_PREFIX
from agentd_client.watching import Watching

START_PREFIX: Final = "start:"
PATIENCE_S: Final = 60.0
"""How long nobody may answer before following is given up; an agentd may be restarted meanwhile."""
_DRAIN_SILENCE_S: Final = 3.0
_LEAVING_S: Final = 2.0
_LEAVING_PAUSE_S: Final = 0.05
_ASK_TIMEOUT_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0
_NEVER: Final = float("inf")


@dataclass(frozen=True, kw_only=True)
class FollowOptions:
    """How a run is followed."""

    logs: LogsRequest | None = None
    launched: Launched | None = None
    """Set where the follower also started the run: its missing nodes are asked again."""
    wait_s: float | None = None
    """Gives up with `StillRunning` after this time. None: stays to the end."""
    patience_s: float = PATIENCE_S
    timeout_s: float = calls.DEFAULT_TIMEOUT_S


def follow(place: Place, options: FollowOptions) -> Plan[RunReport]:
    """Follow a run. Emits `RunEvent`s; the last is `RunOver`, with the report that is also returned."""
    now = yield from clock()
    return (yield from _Follower(place, options, now).follow())


class _Follower:
    def __init__(self, place: Place, options: FollowOptions, now: float) -> None:
        self._place = place
        self._options = options
        self._deadline = _NEVER if options.wait_s is None else now + options.wait_s
        self._nodes = list(place.nodes)
        self._ids: set[str] = set()
        self._starting = _Starting(options.launched, now)
        wanted = [n for n in place.nodes if n.name not in self._starting.waiting]
        self._watching = Watching(
            replace(place, nodes=tuple(wanted)), options.patience_s, options.timeout_s, now
        )
        self._logs = LogReading(options.logs, wanted, now) if options.logs else None
        self._round = 0

    def follow(self) -> Plan[RunReport]:
        yield from self._starting.tell_problems()
        now = yield from clock()
        while not self._watching.over:
            yield from self._act(now)
            event = yield from receive(self._next_due() - now)
            now = yield from clock()
            if event is not None:
                yield from self._take(event, now)
            if now >= self._deadline and not self._watching.over:
                raise StillRunning(self._place.run_id, self._options.wait_s or 0.0, self._phase())
        if self._watching.latest is not None:
            for node in (yield from self._starting.learn(self._watching.latest)):
                self._follow_too(node, now)
        yield from self._drain_logs(now)
        report = yield from self._last_report()
        yield Emit(RunOver(report=report))
        return report

    def _act(self, now: float) -> Plan[None]:
        yield from self._watching.act(now)
        yield from self._starting.act(now)
        if self._logs:
            yield from self._logs.act(now)

    def _next_due(self) -> float:
        logs_due = self._logs.due if self._logs else _NEVER
        return min(self._watching.due, self._starting.due, logs_due, self._deadline)

    def _take(self, event: StreamEvent, now: float) -> Plan[None]:
        if event.key.startswith(WATCH_PREFIX):
            before = self._watching.latest
            yield from self._watching.take(event, now)
            latest = self._watching.latest
            if latest is not None and latest is not before:
                yield from self._learn(latest, now)
        elif event.key.startswith(START_PREFIX):
            node = yield from self._starting.take(event, now, formed=self._round > 0)
            if node is not None:
                self._follow_too(node, now)
        elif self._logs and event.key.startswith(LOGS_PREFIX):
            yield from self._logs.take(event, now)

    def _learn(self, status: RunStatus, now: float) -> Plan[None]:
        """Nodes that have joined are followed too; a new round may have moved ranks."""
        strangers = [node for node in status.nodes if self._is_stranger(node)]
        if strangers:
            yield from self._ask_ids()
            for stranger in strangers:
                if self._is_stranger(stranger):
                    node = Node(stranger.name or stranger.node_id, stranger.address)
                    self._nodes.append(node)
                    self._follow_too(node, now)
        if status.round != self._round:
            self._round = status.round
            if self._logs:
                self._logs.round_changed(now)

    def _follow_too(self, node: Node, now: float) -> None:
        self._watching.add_node(node, now)
        if self._logs:
            self._logs.add_node(node, now)

    def _is_stranger(self, status: NodeStatus) -> bool:
        return bool(status.address) and not (
            status.node_id in self._ids
            or any(node.name == status.name or node.target == status.address for node in self._nodes)
        )

    def _ask_ids(self) -> Plan[None]:
        """A node may have another address than the one we use: its id tells whether we know it."""
        asked = [calls.node_call(node.target, _ASK_TIMEOUT_S) for node in self._nodes]
        answers = yield from call_all(asked)
        self._ids |= {answer.node_id for answer in answers if not isinstance(answer, AgentError)}

    def _drain_logs(self, now: float) -> Plan[None]:
        """What workers have written before the end is read out, but a silent node is not waited for."""
        if self._logs is None:
            return
        quiet_at = now + _DRAIN_SILENCE_S
        while not self._logs.done and now < quiet_at:
            yield from self._logs.act(now)
            event = yield from receive(min(quiet_at, self._logs.due) - now)
            now = yield from clock()
            if event is not None and event.key.startswith(LOGS_PREFIX):
                if isinstance(event, Arrived):
                    # A node that is gone says nothing, however often it is tried.
                    quiet_at = now + _DRAIN_SILENCE_S
                yield from self._logs.take(event, now)
        yield from self._logs.close()

    def _last_report(self) -> Plan[RunReport]:
        """The end as all nodes tell it. Hosts that are just leaving are waited for, so that what they held
        (devices, the run's id) is free when the caller hears of the end.
        """
        patience_ends = (yield from clock()) + _LEAVING_S
        while True:
            report = yield from self._told()
            over = all(node.phase in TERMINAL for node in report.status.nodes)
            if over or (yield from clock()) >= patience_ends:
                return report
            yield from receive(_LEAVING_PAUSE_S)

    def _told(self) -> Plan[RunReport]:
        latest = self._watching.latest
        assert latest is not None
        place = replace(self._place, nodes=tuple(self._nodes))
        try:
            report = yield from tell(place, min(self._options.timeout_s, calls.DEFAULT_TIMEOUT_S), pauses=())
        except AgentError as error:
            return RunReport(status=latest, problems={self._nodes[0].name: error})
        if report.status.incarnation != latest.incarnation or report.status.phase not in TERMINAL:
            return RunReport(status=latest, problems=report.problems)
        return report

    def _phase(self) -> str:
        latest = self._watching.latest
        return str(latest.phase) if latest else "not heard of yet"


class _Starting:
    """Nodes that were missing at the start: each is asked again until it takes the run or refuses."""

    def __init__(self, launched: Launched | None, now: float) -> None:
        self._launched = launched
        self.waiting: dict[str, Node] = {n.name: n for n in launched.missing()} if launched else {}
        self._due = dict.fromkeys(self.waiting, now + _FIRST_PAUSE_S)
        self._pauses = dict.fromkeys(self.waiting, _FIRST_PAUSE_S)

    @property
    def due(self) -> float:
        return min(self._due.values(), default=_NEVER)

    def tell_problems(self) -> Plan[None]:
        for name in self.waiting:
            assert self._launched is not None
            yield Emit(NodeProblem(node=name, error=self._launched.problems[name]))

    def act(self, now: float) -> Plan[None]:
        for name, due in list(self._due.items()):
            if now >= due and self._launched is not None:
                yield Open(START_PREFIX + name, self._launched.run_call(self.waiting[name]))
                self._due[name] = _NEVER

    def take(self, event: StreamEvent, now: float, *, formed: bool) -> Plan[Node | None]:
        name = event.key.removeprefix(START_PREFIX)
        match event:
            case Arrived(_, service.RunResponse() as answer):
                return (yield from self._started(name, calls.start_of(answer).status))
            case Ended(_, AgentError() as error) if is_absence(error):
                self._pauses[name] = min(self._pauses[name] * 1.5, _LONGEST_PAUSE_S)
                self._due[name] = now + self._pauses[name]
            case Ended(_, AgentError() as error):
                yield from self._refused(name, error, formed=formed)
        return None

    def learn(self, status: RunStatus) -> Plan[list[Node]]:
        """Nodes that had a part in the run by its end: the hub's word has overtaken their own answers."""
        joined = {node.name for node in status.nodes if node.phase is not Phase.LOST}
        found = [node for node in self.waiting.values() if node.name in joined]
        for node in found:
            yield from self._started(node.name, status)
        return found

    def _started(self, name: str, status: RunStatus) -> Plan[Node]:
        self._due.pop(name, None)
        yield Emit(NodeStarted(node=name, status=status))
        return self.waiting.pop(name)

    def _refused(self, name: str, error: AgentError, *, formed: bool) -> Plan[None]:
        """A late refusal ends a run that waits for this node; one that goes on without it stays."""
        del self._due[name]
        self.waiting.pop(name)
        if not formed and self._launched is not None:
            yield from undo(self._launched, {name: error})
        yield Emit(NodeProblem(node=name, error=error, final=True))
