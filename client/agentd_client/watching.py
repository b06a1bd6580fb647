"""The watch of a run: one stream from each of its nodes, over breaks, until the run is over.

The hub tells how the run stands, each node tells its workers; what is emitted is the whole of it. Whether the
run is over is the hub's word. A node's own end counts for the run only when the hub cannot be asked.
"""

from __future__ import annotations

from typing import Final

from agentd.api import convert
from agentd.api.errors import AgentError, RunNotFound, Unreachable
from agentd.api.types import TERMINAL, RunStatus
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls
from agentd_client.failures import FleetUnreachable
from agentd_client.locate import Place
from agentd_client.nodes import Node
from agentd_client.plan import Arrived, Close, Emit, Ended, Open, Plan, StreamEvent, call_all
from agentd_client.report import NodeBack, NodeProblem, StatusChanged
from agentd_client.view import merge

PREFIX: Final = "watch:"
HUB_SILENCE_S: Final = 5.0
"""How long a hub may be away before the end that its members tell is taken for the run's."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_NEVER: Final = float("inf")


@dataclass(slots=True)
class _Source:
    """One node's stream."""

    node: Node
    due: float = 0.0
    is_open: bool = False
    told: RunStatus | None = None
    problem: AgentError | None = None
    failures_in_a_row: int = 0

    @property
    def key(self) -> str:
        return PREFIX + self.node.target

    @property
    def is_stranger(self) -> bool:
        """Whether the node knows nothing of the run."""
        return isinstance(self.problem, RunNotFound)


class Watching:
    """The open Watches of a run that is followed. `latest` is its newest picture, `over` its end."""

    def __init__(self, place: Place, patience_s: float, timeout_s: float, now: float) -> None:
        self._place = place
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._sources = {PREFIX + node.target: _Source(node) for node in place.nodes}
        self._heard_at = now
        self._hub_heard_at = now
        self._judge_due = _NEVER
        self.latest: RunStatus | None = None
        self.over = False

    @property
    def due(self) -> float:
        """When something must happen though no event arrives."""
        return min(self._judge_due, *(source.due for source in self._sources.values()))

    def add_node(self, node: Node, now: float) -> None:
        """A node that has come later, or has come back."""
        source = self._sources.setdefault(PREFIX + node.target, _Source(node))
        if not source.is_open:
            source.due = now

    def act(self, now: float) -> Plan[None]:
        """Do what is due: open streams, give up silent ones, ask again whether it is over."""
        if now >= self._judge_due:
            yield from self._judge(now)
        for source in list(self._sources.values()):
            if now < source.due:
                continue
            if source.is_open:
                yield Close(source.key)
                silence = Unreachable(source.node.target, f"it said nothing for {calls.SILENCE_S:g} s")
                yield from self._broke(source, silence, now)
            else:
                # From its newest snapshot, not from a revision: an agentd that was restarted may count anew.
                place = self._place
                yield Open(
                    source.key, calls.watch_call(source.node.target, place.run_id, place.incarnation, 0)
                )
                source.is_open, source.due = True, now + calls.SILENCE_S

    def take(self, event: StreamEvent, now: float) -> Plan[None]:
        """Take what a node said."""
        source = self._sources[event.key]
        match event:
            case Arrived(_, service.WatchResponse() as message):
                yield from self._heard(source, message, now)
            case Ended(_, error):
                problem = error or Unreachable(source.node.target, "it ended the stream")
                yield from self._broke(source, problem, now)

    def close(self) -> Plan[None]:
        """Give up what is still open."""
        for source in self._sources.values():
            if source.is_open:
                yield Close(source.key)
            source.is_open, source.due = False, _NEVER

    def _heard(self, source: _Source, message: service.WatchResponse, now: float) -> Plan[None]:
        source.due, source.failures_in_a_row = now + calls.SILENCE_S, 0
        self._heard_at = now
        if source.problem is not None:
            source.problem = None
            yield Emit(NodeBack(node=source.node.name))
        if message.HasField("status"):
            source.told = convert.run_status_from_message(message.status)
            yield from self._show(source)
        if source.told is not None and source.told.from_hub:
            self._hub_heard_at = now
        if message.HasField("end"):
            yield Close(source.key)
            source.is_open = False
            over_there = source.told is not None and source.told.phase in TERMINAL
            # An ended stream of an ended part has no more to tell; of a live one, it will.
            source.due = _NEVER if over_there else now + _FIRST_PAUSE_S
        yield from self._judge(now)

    def _show(self, source: _Source) -> Plan[None]:
        """Emit the picture if it has changed. What a node told before it fell silent no longer counts."""
        told = [s.told for s in self._sources.values() if s.told is not None and s.problem is None]
        picture = merge(None, told)
        if picture != self.latest:
            self.latest = picture
            yield Emit(StatusChanged(status=picture, source=source.node.name))

    def _judge(self, now: float) -> Plan[None]:
        """Whether the run is over."""
        self._judge_due = _NEVER
        heard = [s.told for s in self._sources.values() if s.told is not None and s.problem is None]
        if any(status.from_hub for status in heard):
            self.over = any(status.from_hub and status.phase in TERMINAL for status in heard)
        elif heard and all(status.phase in TERMINAL for status in heard):
            self.over = yield from self._is_over_without_hub(heard[0], now)
        if self.over:
            yield from self.close()

    def _is_over_without_hub(self, status: RunStatus, now: float) -> Plan[bool]:
        """Ask the hub; if it does not answer for long, what its members say is all there is."""
        if status.hub_address:
            call = calls.describe_call(status.hub_address, status.run_id, status.incarnation, self._timeout_s)
            (answer,) = yield from call_all([call])
            if not isinstance(answer, AgentError):
                self._hub_heard_at = now
                return convert.phase_from_message(answer.status.phase) in TERMINAL
            if isinstance(answer, RunNotFound):
                return True
        self._judge_due = now + HUB_SILENCE_S / 5
        return now - self._hub_heard_at > HUB_SILENCE_S

    def _broke(self, source: _Source, error: AgentError, now: float) -> Plan[None]:
        source.is_open = False
        if source.problem is None and not isinstance(error, RunNotFound):
            yield Emit(NodeProblem(node=source.node.name, error=error))
        source.problem = error
        self._raise_if_hopeless(now)
        pause = min(_FIRST_PAUSE_S * 2 ** min(source.failures_in_a_row, 10), _LONGEST_PAUSE_S)
        source.failures_in_a_row += 1
        source.due = now + pause
        yield from self._judge(now)

    def _raise_if_hopeless(self, now: float) -> None:
        problems = {s.node.name: s.problem for s in self._sources.values() if s.problem is not None}
        if len(problems) < len(self._sources):
            return
        if all(source.is_stranger for source in self._sources.values()):
            raise next(iter(problems.values()))
        if now - self._heard_at > self._patience_s:
            raise next(iter(problems.values())) if len(problems) == 1 else FleetUnreachable(problems)
