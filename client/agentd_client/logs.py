"""Worker output of a whole run: one stream from each node, resumed where it broke.

`LogReading` is the part of a followed run; `read_logs` reads what there is and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Final

from agentd.api import convert
from agentd.api.errors import AgentError, LogNotFound, RunNotFound, Unreachable
from agentd.api.types import LogChunk, LogGap, LogPosition, LogsRequest, StreamEndCause
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls
from agentd_client.nodes import Node
from agentd_client.plan import Arrived, Close, Emit, Ended, Open, Plan, StreamEvent, clock, receive
from agentd_client.report import LogCut, LogReceived, NodeBack, NodeProblem, PerNode
from agentd_client.retry import is_absence

PREFIX: Final = "logs:"
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_NEVER: Final = float("inf")


@dataclass(slots=True)
class _Reader:
    """One node's stream."""

    node: Node
    due: float
    is_open: bool = False
    done: bool = False
    waits_for_round: bool = False
    failures_in_a_row: int = 0
    problem: AgentError | None = None
    positions: dict[tuple[str, int, int, str], LogPosition] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return PREFIX + self.node.target


class LogReading:
    """The open Logs of a run's nodes."""

    def __init__(self, request: LogsRequest, nodes: Sequence[Node], now: float) -> None:
        self._request = request
        self._readers = {PREFIX + node.target: _Reader(node, now) for node in nodes}

    @property
    def due(self) -> float:
        """When something must happen though no event arrives."""
        return min((reader.due for reader in self._readers.values()), default=_NEVER)

    @property
    def done(self) -> bool:
        """Whether every node has told all."""
        return all(reader.done for reader in self._readers.values())

    @property
    def problems(self) -> dict[str, AgentError]:
        """Nodes whose output is not read to its end, by name."""
        return {r.node.name: r.problem for r in self._readers.values() if r.problem is not None}

    def add_node(self, node: Node, now: float) -> None:
        """A node that has come later, or has come back."""
        reader = self._readers.setdefault(PREFIX + node.target, _Reader(node, now))
        if not reader.is_open:
            reader.done, reader.waits_for_round, reader.due = False, False, now

    def round_changed(self, now: float) -> None:
        """Ranks may have moved to nodes that had none of those asked for."""
        for reader in self._readers.values():
            if reader.waits_for_round:
                self.add_node(reader.node, now)

    def act(self, now: float) -> Plan[None]:
        """Do what is due: open streams, give up silent ones."""
        for reader in list(self._readers.values()):
            if now < reader.due:
                continue
            if reader.is_open:
                yield Close(reader.key)
                problem = Unreachable(reader.node.target, f"it said nothing for {calls.LOG_SILENCE_S:g} s")
                yield from self._broke(reader, problem, now)
            else:
                request = replace(self._request, resume=tuple(reader.positions.values()))
                yield Open(reader.key, calls.logs_call(reader.node.target, request))
                reader.is_open, reader.due = True, now + calls.LOG_SILENCE_S

    def take(self, event: StreamEvent, now: float) -> Plan[None]:
        """Take what a node said."""
        reader = self._readers[event.key]
        match event:
            case Arrived(_, service.LogsResponse() as message):
                yield from self._heard(reader, message, now)
            case Ended(_, None):
                # A stream without `follow` that just ends has told everything.
                if self._request.follow:
                    yield from self._broke(
                        reader, Unreachable(reader.node.target, "it ended the stream"), now
                    )
                else:
                    self._finish(reader)
            case Ended(_, AgentError() as error):
                yield from self._broke(reader, error, now)

    def close(self) -> Plan[None]:
        """Give up what is still open."""
        for reader in self._readers.values():
            if reader.is_open:
                yield Close(reader.key)
            self._finish(reader)

    def _heard(self, reader: _Reader, message: service.LogsResponse, now: float) -> Plan[None]:
        reader.due, reader.failures_in_a_row = now + calls.LOG_SILENCE_S, 0
        if reader.problem is not None:
            reader.problem = None
            yield Emit(NodeBack(node=reader.node.name))
        if message.HasField("chunk"):
            chunk = convert.log_chunk_from_message(message.chunk)
            _go_on_at(reader, chunk, chunk.offset + len(chunk.data))
            yield Emit(LogReceived(chunk=chunk, source=reader.node.name))
        elif message.HasField("gap"):
            gap = convert.log_gap_from_message(message.gap)
            _go_on_at(reader, gap, gap.offset + gap.size if gap.size else 0)
            yield Emit(LogCut(gap=gap, source=reader.node.name))
        elif message.HasField("end"):
            yield Close(reader.key)
            end = convert.stream_end_from_message(message.end)
            if end.cause is StreamEndCause.FINISHED:
                self._finish(reader)
            else:
                yield from self._broke(reader, Unreachable(reader.node.target, end.reason), now)

    def _broke(self, reader: _Reader, error: AgentError, now: float) -> Plan[None]:
        reader.is_open = False
        if isinstance(error, LogNotFound | RunNotFound):
            self._finish(reader)
            reader.waits_for_round = True
            reader.problem = error if isinstance(error, LogNotFound) else None
            return
        final = not is_absence(error) or not self._request.follow
        if reader.problem is None:
            yield Emit(NodeProblem(node=reader.node.name, error=error, final=final))
        reader.problem = error
        if final:
            reader.done, reader.due = True, _NEVER
            return
        pause = min(_FIRST_PAUSE_S * 2 ** min(reader.failures_in_a_row, 10), _LONGEST_PAUSE_S)
        reader.failures_in_a_row += 1
        reader.due = now + pause

    @staticmethod
    def _finish(reader: _Reader) -> None:
        reader.is_open, reader.done, reader.due = False, True, _NEVER


def read_logs(request: LogsRequest, nodes: Sequence[Node]) -> Plan[PerNode[None]]:
    """Emit the output there is, from all nodes at once. Raises `LogNotFound` when no node has any of it."""
    now = yield from clock()
    reading = LogReading(replace(request, follow=False), nodes, now)
    while not reading.done:
        yield from reading.act(now)
        event = yield from receive(min(reading.due - now, calls.LOG_SILENCE_S))
        now = yield from clock()
        if event is not None:
            yield from reading.take(event, now)
    lacking = {name: e for name, e in reading.problems.items() if isinstance(e, LogNotFound)}
    if lacking and len(lacking) == len(nodes):
        raise next(iter(lacking.values()))
    return PerNode(problems={n: e for n, e in reading.problems.items() if n not in lacking})


def _go_on_at(reader: _Reader, told: LogChunk | LogGap, offset: int) -> None:
    file = (told.role, told.round, told.local_rank, told.stream.value)
    reader.positions[file] = LogPosition(
        role=told.role,
        round=told.round,
        local_rank=told.local_rank,
        stream=told.stream,
        offset=offset,
    )
