"""What an attached command shows of a run's events, for people or for programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import BinaryIO, Final, Protocol

from agentctl.show.endreport import end_report
from agentctl.show.lines import LineAssembler
from agentctl.show.narration import narrate, waiting_line
from agentctl.show.talk import say, say_all
from agentctl.show.words import cut_line
from agentd.api import convert
from agentd.api.errors import AgentError
from agentd.api.types import LogStream, Phase, RunStatus
from agentd.v1 import agent_service_pb2 as service
from agentd_client.report import (
    LogCut,
    LogReceived,
    NodeBack,
    NodeProblem,
    NodeStarted,
    RunEvent,
    RunReport,
    StatusChanged,
)

PATIENCE_S: Final = 0.7
"""A wait for nodes that is shorter is no news."""


class Display(Protocol):
    """Takes a run's events as they come, and its end."""

    def show(self, event: RunEvent) -> None:
        """Something happened."""

    def tick(self, now: float) -> None:
        """Time has passed: `now` is monotonic."""

    def end(self, report: RunReport) -> None:
        """The run is over."""


class PeopleDisplay:
    """Output of workers as prefixed lines, news on standard error, a report at the end."""

    def __init__(self, lines: LineAssembler | None = None, *, quiet: bool = False) -> None:
        self._lines = lines or LineAssembler()
        self._quiet = quiet
        self._before: RunStatus | None = None
        self._down: set[str] = set()
        self._waiting = _Waiting()

    def show(self, event: RunEvent) -> None:
        """Something happened."""
        match event:
            case LogReceived(chunk=chunk):
                write_output(chunk.stream, self._lines.take(chunk))
            case LogCut(gap=gap):
                write_output(gap.stream, self._lines.cut(gap))
                say(cut_line(gap))
            case StatusChanged(status=status):
                self._news(status)
            case NodeProblem(node=node, error=error, final=final) if node not in self._down:
                self._down.add(node)
                say(f"node {node}: {error}{'' if final else ' Trying again.'}")
            case NodeBack(node=node) if node in self._down:
                self._down.discard(node)
                say(f"node {node} answers again")
            case NodeStarted(node=node):
                self._down.discard(node)
                say(f"node {node} has taken the run")

    def tick(self, now: float) -> None:
        """Time has passed: a wait that lasts is told."""
        line = waiting_line(self._before) if self._before and not self._quiet else ""
        if self._waiting.is_due(line, now):
            say(line)

    def end(self, report: RunReport) -> None:
        """The run is over."""
        self.flush()
        status = report.status
        if not (self._quiet and status.phase is Phase.SUCCEEDED and not report.problems):
            say_all(end_report(status, _unexplained(status, report.problems)))

    def flush(self) -> None:
        """Show what has no line's end."""
        for stream, data in self._lines.rest():
            write_output(stream, data)

    def _news(self, status: RunStatus) -> None:
        if not self._quiet:
            for line in narrate(self._before, status):
                say(line)
        self._before = status


class _Waiting:
    """Lets one line through when it has stood for a while: many nodes that join at once are one line."""

    def __init__(self) -> None:
        self._line = ""
        self._since = 0.0
        self._told = ""

    def is_due(self, line: str, now: float) -> bool:
        """Whether to tell this line now."""
        if not line or not self._line:
            self._since = now
        self._line = line
        if not line or line == self._told or now - self._since < PATIENCE_S:
            return False
        self._told, self._since = line, now
        return True


class JsonLinesDisplay:
    """Each event as a message of the API, one a line; problems of nodes are talk."""

    def __init__(self) -> None:
        self._talk = PeopleDisplay(quiet=True)

    def show(self, event: RunEvent) -> None:
        """Something happened."""
        from agentctl.show.messages import write_json_lines

        match event:
            case LogReceived(chunk=chunk):
                write_json_lines([service.LogsResponse(chunk=convert.log_chunk_to_message(chunk))])
            case LogCut(gap=gap):
                write_json_lines([service.LogsResponse(gap=convert.log_gap_to_message(gap))])
            case StatusChanged(status=status):
                write_json_lines([service.WatchResponse(status=convert.run_status_to_message(status))])
            case NodeProblem() | NodeBack() | NodeStarted():
                self._talk.show(event)

    def tick(self, now: float) -> None:
        """Programs are not told of waits; snapshots have them."""

    def end(self, report: RunReport) -> None:
        """The last line is the run as it ended."""
        self.show(StatusChanged(status=report.status, source=""))


class JsonDisplay:
    """Only the run as it ended, as one message. Workers' output goes to standard error."""

    def __init__(self, lines: LineAssembler | None = None) -> None:
        self._lines = lines or LineAssembler()
        self._talk = PeopleDisplay(quiet=True)

    def show(self, event: RunEvent) -> None:
        """Something happened."""
        if isinstance(event, LogReceived):
            write_output(LogStream.STDERR, self._lines.take(event.chunk))
        else:
            self._talk.show(event)

    def tick(self, now: float) -> None:
        """Programs are not told of waits."""

    def end(self, report: RunReport) -> None:
        """The run is over."""
        from agentctl.show.messages import write_json

        for _, data in self._lines.rest():
            write_output(LogStream.STDERR, data)
        write_json(convert.run_status_to_message(report.status))


def make_display(output: str, lines: LineAssembler | None = None, *, quiet: bool = False) -> Display:
    """The display for `-o`."""
    if output == "json":
        return JsonDisplay(lines)
    return JsonLinesDisplay() if output == "jsonl" else PeopleDisplay(lines, quiet=quiet)


def write_output(stream: LogStream, data: bytes) -> None:
    """Workers' bytes to our own stream of the same name."""
    if not data:
        return
    if stream is LogStream.STDERR:
        with contextlib.suppress(OSError, ValueError):
            _write(sys.stderr.buffer, data)
        return
    _write(sys.stdout.buffer, data)


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


def _unexplained(status: RunStatus, problems: Mapping[str, AgentError]) -> dict[str, AgentError]:
    """Nodes that the hub has counted as lost or missing need no second word about their silence."""
    known = {node.name or node.node_id for node in status.nodes if node.phase is Phase.LOST}
    return {name: error for name, error in problems.items() if name not in known | set(status.missing)}
