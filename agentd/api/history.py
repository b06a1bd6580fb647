"""What happened on a node, as callers read it: events of runs and of agentd itself, oldest first."""

from __future__ import annotations

import enum

from agentd.api.types import Phase, RunStatus
from agentd.quickdata import dataclass


class EventKind(str, enum.Enum):
    """What an event is about. A newer agentd may tell of more."""

    AGENTD_STARTED = "agentd_started"
    AGENTD_ENDED = "agentd_ended"
    JOURNAL_DAMAGED = "journal_damaged"
    """Something of the journal could not be read."""
    CONDITION_BEGAN = "condition_began"
    """Something degrades the node from now on."""
    CONDITION_OVER = "condition_over"
    NODE_DRAINED = "node_drained"
    """An operator wants the node empty: it takes no new run."""
    NODE_UNDRAINED = "node_undrained"
    RUN_STARTED = "run_started"
    """The node took its part in a run."""
    RUN_ENDED = "run_ended"
    """Nothing of the run is left on the node."""
    STOP_ASKED = "stop_asked"
    SIGNAL_SENT = "signal_sent"
    HUB_LOST = "hub_lost"
    HUB_FOUND = "hub_found"
    NODE_DETACHED = "node_detached"
    """A node of the run is out of touch with its hub, which tells it: it keeps its place for a while."""
    NODE_BACK = "node_back"
    NODE_LOST = "node_lost"
    """The hub has given up a node of the run."""
    PHASE = "phase"
    """A worker group is in another phase."""
    HOST_STARTED = "host_started"
    HOST_MET = "host_met"
    """A host that went on without agentd has dialled in again."""
    HOST_ENDED = "host_ended"
    ROUND_FORMED = "round_formed"
    """The group has a place in a round."""
    ROUND_STOPPED = "round_stopped"
    """The workers of the round are to go, to form another."""
    WORKERS_STARTED = "workers_started"
    WORKER_ENDED = "worker_ended"
    WORKERS_FAILED = "workers_failed"
    UNKILLABLE = "unkillable"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class EventWorker:
    """A worker that an event is about."""

    rank: int
    local_rank: int = 0
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened on a node."""

    id: int
    """Grows within the journal of a node; no two events of it have one."""
    time: float
    """By the node's clock."""
    node_id: str
    kind: str
    """A word of `EventKind`, or one this version does not know."""
    run_id: str = ""
    """Empty: it happened to the node as a whole."""
    incarnation: int = 0
    role: str = ""
    """Empty: it happened to the node's whole part in the run."""
    phase: Phase | None = None
    """Of the group or run after it."""
    round: int = 0
    """0: of none."""
    detail: str = ""
    """For people."""
    workers: tuple[EventWorker, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsRequest:
    """Which events are wanted."""

    run_id: str = ""
    """Empty: all of the node."""
    incarnation: int = 0
    """0: the newest."""
    after_id: int = 0
    """Only what came later than this event."""
    page_size: int = 0
    """0: as many as the node likes to tell at once."""
    tail: int = 0
    """Of all there are only so many, the newest. 0: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsPage:
    """Events, oldest first, and whether more are there already."""

    events: tuple[Event, ...]
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRunsPage:
    """Runs that have ended, the newest end first."""

    runs: tuple[RunStatus, ...]
    next_page_token: str = ""
    """Empty: there is nothing more."""
