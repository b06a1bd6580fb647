"""What a client learns of a fleet: answers beside problems, so that no partial result is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Generic, NamedTuple, TypeVar

from agentd.api.errors import AgentError
from agentd.api.history import Event
from agentd.api.types import LogChunk, LogGap, RunStatus
from agentd.quickdata import dataclass

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class PerNode(Generic[T_co]):
    """What each node said, by its name."""

    answers: Mapping[str, T_co] = field(default_factory=dict)
    problems: Mapping[str, AgentError] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every node answered."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run as its hub and its nodes tell it together."""

    status: RunStatus
    problems: Mapping[str, AgentError] = field(default_factory=dict)
    """Nodes, by name, whose own part of the story is lacking, and why."""

    @property
    def complete(self) -> bool:
        """Whether every node told its part."""
        return not self.problems


class Start(NamedTuple):
    """What became of one node when a run was started."""

    status: RunStatus
    created: bool
    """False: the run was there already."""


class StatusChanged(NamedTuple):
    """The run's newest snapshot."""

    status: RunStatus
    source: str
    """The node that told it."""


class LogReceived(NamedTuple):
    """A piece of a worker's output."""

    chunk: LogChunk
    source: str


class LogCut(NamedTuple):
    """The oldest part of a worker's output is gone: it was removed to keep the file within its cap."""

    gap: LogGap
    source: str


class NodeStarted(NamedTuple):
    """A node that was missing has taken the run."""

    node: str
    status: RunStatus


class NodeProblem(NamedTuple):
    """A node does not answer or has refused; unless `final`, it is tried again."""

    node: str
    error: AgentError
    final: bool = False


class NodeBack(NamedTuple):
    """A node with a problem answers again."""

    node: str


class RunOver(NamedTuple):
    """The run has ended; nothing follows."""

    report: RunReport


RunEvent = StatusChanged | LogReceived | LogCut | NodeStarted | NodeProblem | NodeBack | RunOver
"""What `RunHandle.follow` gives."""

HistoryItem = Event | NodeProblem | NodeBack
"""What `Fleet.events` and `RunHandle.events` give."""
