"""What hub and nodes say to each other, as frozen values. Mirrors `rendezvous_service.proto`.

`agentd.hub.codec` alone turns them into messages. Durations are seconds. A node has one stream for all
its members of a run, so a message names the role where it is about one member.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from agentd.api.types import Failure, Phase, RunSpec, RunStatus
from agentd.core import assignment
from agentd.quickdata import dataclass


class MemberCondition(enum.Enum):
    """How a member is, as its own node knows it."""

    JOINING = "joining"
    """No workers; wants a place."""
    RUNNING = "running"
    DONE = "done"
    """Its workers of the round succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """A member, told again by its node on a new stream."""

    role: str
    local_world_size: int
    condition: MemberCondition
    round: int = 0
    """The round whose workers run or have just ended here; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHello:
    """First message of a stream: which run it is about and who speaks."""

    run_id: str
    incarnation: int
    node_id: str
    agent_uid: str
    session_epoch: int
    """Larger for each new session of a node; only the largest counts."""
    address: str = ""
    node_name: str = ""
    members: tuple[MemberState, ...] = ()
    reattach_window: float = 0.0
    """How long this node's workers outlive a broken stream."""
    version: str = ""
    restart_count: int = 0
    """Of the run, as far as this node has heard: a hub whose disk lost its own count takes the higher one."""
    membership_changes: int = 0
    """The same of those that led to a round."""
    failure_counted: bool = False
    """Whether `restart_count` has a failure of the newest round that this node has a place in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReady:
    """The member wants a place in the next round; none of its workers run."""

    role: str
    local_world_size: int
    master_port: int
    """Held by its node and free for rank 0 of the next round."""
    round: int
    """The newest it has heard of, by a place or by a stop; 0: none. An offer that crossed a newer place on
    its way is none: the place will be answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundGone:
    """Every process of the member's part of the round is gone, and it wants a place in the next."""

    role: str
    round: int
    master_port: int = 0
    """0: it wants no place any more."""
    unkillable: str = ""
    """Not empty: it cannot be made to go; the hub leaves the member out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgedFailure:
    """A failure and how long ago it was when the message left, by the sender's own clock."""

    failure: Failure
    age: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFailed:
    """Workers of the member failed, or (with a reason) the group itself could not go on."""

    role: str
    round: int
    failures: tuple[AgedFailure, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDone:
    """All workers of the member succeeded."""

    role: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLeaving:
    """The member leaves the run; the others go on."""

    role: str
    reason: str = ""
    failed: bool = False
    """Nobody asked it to: it cannot take part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHeartbeat:
    """A sign of life; the hub answers with the same number."""

    sequence: int


MemberMessage: TypeAlias = MemberReady | RoundGone | MemberFailed | MemberDone | MemberLeaving
"""What a node says of one of its members."""

NodeMessage: TypeAlias = MemberMessage | SessionHeartbeat
"""What a node says after its hello."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionWelcome:
    """First answer of the hub."""

    hub_node_id: str
    heartbeat: float
    lease: float
    spec: RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment(assignment.Assignment):
    """A member's place in a formed round."""

    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRound:
    """First beat of a new round: stop the workers of this one and answer with `RoundGone`."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberWaiting:
    """No place now: the member is a spare until the next round."""

    role: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run is over for everyone who reads this."""

    phase: Phase
    first_failure: Failure | None = None
    reason: str = ""
    stop_grace: float | None = None
    """For the workers that still run. None: the run's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHeartbeatAnswer:
    """The hub lives and has read the heartbeat."""

    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What a node shows of the whole run."""

    status: RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLeaving:
    """The hub goes away; come back in a moment."""

    reason: str


HubMessage: TypeAlias = (
    SessionWelcome
    | Assignment
    | StopRound
    | MemberWaiting
    | RunFinished
    | SessionHeartbeatAnswer
    | RunView
    | HubLeaving
)
"""What the hub says to a node."""
