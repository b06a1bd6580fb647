"""A run as its hub knows it, what can happen to it, and what the hub does then: frozen values only.

Maps are copied when they change, never altered. Each member is in exactly one of `waiting`, `live`,
`done` and `owing`, or in none. Times are seconds of the observer's own clock (`agentd.hub.observer`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from agentd.api.types import Failure, Phase
from agentd.core.specs import Member
from agentd.hub.messages import Assignment, HubMessage, MemberMessage, SessionHello
from agentd.hub.plan import RunPlan
from agentd.quickdata import dataclass

K = TypeVar("K")
V = TypeVar("V")


class MemberKey(NamedTuple):
    """A member of a run: one worker group."""

    node_id: str
    role: str


class Beat(enum.Enum):
    """Where the run is between two rounds."""

    FORMING = "forming"
    """Nobody runs; waiting for enough members."""
    RUNNING = "running"
    STOPPING = "stopping"
    """First beat of a new round: waiting until the last one is gone everywhere."""
    ENDING = "ending"
    """The outcome is told; waiting until nobody runs."""
    ENDED = "ended"


def _nothing() -> Mapping[K, V]:
    return MappingProxyType[K, V]({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is here, or whose stream broke a moment ago."""

    node_id: str
    agent_uid: str
    epoch: int
    address: str
    name: str
    """The caller's name for it, or its id."""
    reattach_window: float
    sizes: Mapping[str, int]
    """Last known local_world_size by role."""
    told: Mapping[str, int] = field(default_factory=_nothing)
    """By role, the newest round that its session was given a place in, or began with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A node that was here. Kept for status, and so that no older session of it counts again."""

    agent_uid: str
    epoch: int
    address: str
    name: str
    reason: str
    lost: bool
    """False: it left."""


class Offer(NamedTuple):
    """What a waiting member brings."""

    local_world_size: int
    master_port: int


class Place(NamedTuple):
    """What a member has in a round."""

    assignment: Assignment
    offer: Offer


class TimedFailure(NamedTuple):
    """A failure and when it happened by the hub's own clock: arrival less age."""

    failure: Failure
    at: float


class Renewal(NamedTuple):
    """The newest sign of whoever looks after a run with a controller lease."""

    at: float
    time: float
    """The same by the wall clock, for people."""
    instead: str
    """What began the lease when nobody has renewed it yet; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMember:
    """A member that may run something of the recorded round, for a hub that has only its record."""

    node_id: str
    role: str
    agent_uid: str
    address: str
    name: str
    local_world_size: int
    master_port: int = 0
    """What it offered for the round; 0: an older agentd did not write it down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRecord:
    """What outlives the hub: nothing of it is announced before it is written."""

    round: int = 0
    restart_count: int = 0
    membership_changes: int = 0
    first_failure: Failure | None = None
    outcome: Phase | None = None
    reason: str = ""
    members: tuple[RecordedMember, ...] = ()
    """By group rank."""
    order: tuple[tuple[str, str], ...] = ()
    """All members of the round by group rank, node and role; empty: an older agentd wrote only `members`."""
    end_grace: float | None = None
    """For the workers of a run that is over. None: the run's own."""
    stopping: bool = False
    """The round was being stopped, so its members may know that it is over."""
    left: tuple[tuple[str, str], ...] = ()
    """Listed members that left, node name and role."""


# Without slots, so that `but` can copy it as a whole: it is copied several times for each event.
@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything the hub knows of a run."""

    plan: RunPlan
    beat: Beat = Beat.FORMING
    reason: str = ""
    round: int = 0
    """The newest that formed."""
    restart_count: int = 0
    membership_changes: int = 0

    nodes: Mapping[str, Node] = field(default_factory=_nothing)
    detached: Mapping[str, float] = field(default_factory=_nothing)
    """Nodes without a stream, and until when they keep their places."""
    absent: Mapping[str, Absent] = field(default_factory=_nothing)

    waiting: Mapping[MemberKey, Offer] = field(default_factory=_nothing)
    """Want a place and run nothing, in order of arrival."""
    live: Mapping[MemberKey, Place | None] = field(default_factory=_nothing)
    """Have a place in the running round; None: given by an older agentd, which did not write it down."""
    done: Mapping[MemberKey, Place | None] = field(default_factory=_nothing)
    """Succeeded in the running round."""
    owing: Mapping[MemberKey, Place | None] = field(default_factory=_nothing)
    """Have yet to say that the round is gone."""
    behind: Mapping[MemberKey, int] = field(default_factory=_nothing)
    """Were left out while they ran this round, and have yet to say that it is gone. Until then no member of
    their node has a place: no node runs two rounds."""
    leaving: frozenset[MemberKey] = frozenset()
    """Want no place in the next round, until they offer themselves again."""
    out: Mapping[MemberKey, str] = field(default_factory=_nothing)
    """Left out, with the reason, until they offer themselves again."""
    left: frozenset[Member] = frozenset()
    """Listed members that have left and are awaited no more, until they offer themselves again."""
    order: tuple[MemberKey, ...] = ()
    """The newest round's members by group rank."""

    join_deadline: float | None = None
    last_call_at: float | None = None
    """When a round that could form no longer waits for more members."""
    answer_deadline: float | None = None
    """When those that still owe an answer are lost."""
    gather_until: float = 0.0
    """Losses until then belong to the same membership change."""

    failure_counted: bool = False
    """The round that is being stopped or formed has had its failure."""
    first: TimedFailure | None = None
    suspects: frozenset[str] = frozenset()
    """Silent nodes of a round that failed. The failure counts only if none of them turns out lost."""
    suspect_lost: bool = False

    renewal: Renewal | None = None
    """None: the run has no controller lease."""

    outcome: Phase | None = None
    end_grace: float | None = None

    def but(self, **fields: Any) -> RunState:
        """This state with other values of some fields, as `dataclasses.replace` at a tenth of its price."""
        assert fields.keys() <= self.__dict__.keys(), f"a run has no such state: {', '.join(fields)}"
        changed = object.__new__(RunState)
        changed.__dict__.update(self.__dict__, **fields)
        return changed


@dataclass(frozen=True, slots=True)
class Attached:
    """A node opened a stream; `refusal(state, hello, now)` had nothing against it."""

    hello: SessionHello


@dataclass(frozen=True, slots=True)
class Received:
    """A node's session said something of a member."""

    node_id: str
    epoch: int
    message: MemberMessage
    overdue: frozenset[str] = frozenset()
    """With a failure: the nodes that have missed heartbeats."""


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A session's stream is over, whoever ended it."""

    node_id: str
    epoch: int
    own_fault: bool = False
    """The hub was held up so long that nodes had to take it for dead."""
    silence: float = 0.0
    """Seconds since the node was heard: the stream of one that froze or was cut off ends by a timeout."""


@dataclass(frozen=True, slots=True)
class NodeSilent:
    """An open session said nothing for a lease."""

    node_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Terminated:
    """Somebody wants the run ended everywhere."""

    grace: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Renewed:
    """Somebody renewed the controller lease, at this wall-clock time."""

    time: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = Attached | Received | StreamEnded | NodeSilent | Terminated | Renewed | Tick


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a node's session; nothing if it has none now."""

    node_id: str
    message: HubMessage


@dataclass(frozen=True, slots=True)
class Journal:
    """Write, before any effect that follows."""

    record: HubRecord


@dataclass(frozen=True, slots=True)
class CloseSession:
    """End a node's stream after what was sent to it."""

    node_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Status is another one now."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Nobody runs any more and the outcome is final: show it and end every stream."""


Effect: TypeAlias = Send | Journal | CloseSession | Publish | Ended
