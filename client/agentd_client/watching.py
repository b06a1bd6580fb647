"""The watch of a run: from its hub's node or any other that lives, over broken streams, until it is over.

A source that breaks is left for the next one; each is resumed by the last revision it told.
"""

from __future__ import annotations

from typing import Final

from agentd.api import convert
from agentd.api.errors import AgentError, RunNotFound, Unreachable
from agentd.api.types import TERMINAL, RunStatus
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls
from agentd_client.failures import FleetUnreachable
from agentd_client.locate import Place
from agentd_client.nodes import Node
from agentd_client.plan import Arrived, Close, Emit, Ended, Open, Plan, StreamEvent, call_all
from agentd_client.report import NodeBack, NodeProblem, StatusChanged

KEY: Final = "watch"
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Watching:
    """The one open Watch of a run that is followed. `latest` is its newest snapshot, `over` its end."""

    def __init__(self, place: Place, patience_s: float, timeout_s: float) -> None:
        self._place = place
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._sources = list(place.nodes)
        self._at = 0
        self._revisions: dict[str, int] = {}
        self._strangers: set[str] = set()
        self._problems: dict[str, AgentError] = {}
        self._is_open = False
        self._due = 0.0
        self._failures_in_a_row = 0
        self._down_since: float | None = None
        self.latest: RunStatus | None = None
        self.over = False

    @property
    def due(self) -> float:
        """When something must happen though no event arrives."""
        return self._due

    def add_source(self, node: Node) -> None:
        """Another node that knows the run."""
        self._strangers.discard(node.name)
        if all(known.target != node.target for known in self._sources):
            self._sources.append(node)

    def act(self, now: float) -> Plan[None]:
        """Do what is due: open a source, or give up one that says nothing."""
        if now < self._due:
            return
        if self._is_open:
            yield Close(KEY)
            silence = Unreachable(self._source.target, f"it said nothing for {calls.SILENCE_S:g} s")
            yield from self._broke(silence, now)
            return
        source = self._source
        revision = self._revisions.get(source.name, 0)
        yield Open(
            KEY, calls.watch_call(source.target, self._place.run_id, self._place.incarnation, revision)
        )
        self._is_open, self._due = True, now + calls.SILENCE_S

    def take(self, event: StreamEvent, now: float) -> Plan[None]:
        """Take what the source said."""
        match event:
            case Arrived(_, service.WatchResponse() as message):
                yield from self._heard(message, now)
            case Ended(_, error):
                problem = error or Unreachable(self._source.target, "it ended the stream")
                yield from self._broke(problem, now)

    @property
    def _source(self) -> Node:
        return self._sources[self._at % len(self._sources)]

    def _heard(self, message: service.WatchResponse, now: float) -> Plan[None]:
        source = self._source
        self._due, self._failures_in_a_row, self._down_since = now + calls.SILENCE_S, 0, None
        if self._problems.pop(source.name, None) is not None:
            yield Emit(NodeBack(node=source.name))
        if message.HasField("status"):
            status = convert.run_status_from_message(message.status)
            self._revisions[source.name] = status.revision
            self.latest = status
            yield Emit(StatusChanged(status=status, source=source.name))
            if status.phase in TERMINAL:
                yield from self._ended_there(status, now)
        elif message.HasField("heartbeat"):
            # Its count has started anew: what we have seen says nothing about what is new there.
            if message.heartbeat.revision < self._revisions.get(source.name, 0):
                self._revisions[source.name] = 0
                yield from self._leave(now)
        elif message.HasField("end"):
            yield from self._leave(now)

    def _ended_there(self, status: RunStatus, now: float) -> Plan[None]:
        """A node's own end is the run's only if its hub agrees or nobody else says otherwise."""
        self.over = status.from_hub or not (yield from self._lives_elsewhere(status))
        if self.over:
            yield Close(KEY)
            self._is_open = False
        else:
            self._strangers.add(self._source.name)
            yield from self._leave(now)

    def _lives_elsewhere(self, status: RunStatus) -> Plan[bool]:
        run_id, incarnation = self._place.run_id, self._place.incarnation
        if status.hub_address:
            (answer,) = yield from call_all(
                [calls.describe_call(status.hub_address, run_id, incarnation, self._timeout_s)]
            )
            if not isinstance(answer, AgentError):
                return convert.phase_from_message(answer.status.phase) not in TERMINAL
        others = [node for node in self._sources if node.name != self._source.name]
        answers = yield from call_all(
            [calls.status_call(node.target, run_id, self._timeout_s) for node in others]
        )
        known = [calls.newest(a) for a in answers if not isinstance(a, AgentError)]
        return any(
            s is not None and s.incarnation == status.incarnation and s.phase not in TERMINAL for s in known
        )

    def _leave(self, now: float) -> Plan[None]:
        """Go on with the next source, this one having said all it can."""
        yield Close(KEY)
        self._is_open = False
        self._next_source(now)

    def _broke(self, error: AgentError, now: float) -> Plan[None]:
        self._is_open = False
        source = self._source
        if isinstance(error, RunNotFound):
            self._strangers.add(source.name)
            if all(node.name in self._strangers for node in self._sources):
                raise error
        elif source.name not in self._problems:
            yield Emit(NodeProblem(node=source.name, error=error))
        self._problems[source.name] = error
        if self._down_since is None:
            self._down_since = now
        elif now - self._down_since > self._patience_s:
            raise FleetUnreachable(self._problems)
        self._next_source(now)

    def _next_source(self, now: float) -> None:
        candidates = len(self._sources)
        for step in range(1, candidates + 1):
            if self._sources[(self._at + step) % candidates].name not in self._strangers:
                self._at += step
                break
        pause = _FIRST_PAUSE_S * 2 ** min(self._failures_in_a_row, 10)
        self._failures_in_a_row += 1
        self._due = now + min(pause, _LONGEST_PAUSE_S)
