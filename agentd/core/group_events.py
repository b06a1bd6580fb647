"""What happens to a worker group, and what is then to be done: events and effects of `core.group.step`."""

from __future__ import annotations

from typing import TypeAlias

from agentd.api.types import Failure, Phase, WorkerStatus
from agentd.core.assignment import Assignment
from agentd.quickdata import dataclass

# --- events: from the supervisor and the host ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The group was admitted and journalled."""


@dataclass(frozen=True, slots=True)
class HostSpawned:
    """The host process exists."""

    pid: int


@dataclass(frozen=True, slots=True)
class HostReady:
    """No worker runs; the host holds `master_port` for rank 0 of the next round."""

    master_port: int


@dataclass(frozen=True, slots=True)
class WorkersStarted:
    """All workers of the round run."""

    round: int
    workers: tuple[WorkerStatus, ...]
    preload_problem: str = ""
    """Why not all of them were forked as the spec's `preload` wishes."""


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """One worker of the round ended, by itself or torn down."""

    round: int
    local_rank: int
    exit_code: int | None
    signal: int | None
    torn_down: bool


@dataclass(frozen=True, slots=True)
class WorkersFailed:
    """The group cannot go on in this round. `ages`: seconds since each failure."""

    round: int
    failures: tuple[Failure, ...] = ()
    ages: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkersDone:
    """All workers of the round succeeded; the host exits next."""

    round: int


@dataclass(frozen=True, slots=True)
class WorkersUnkillable:
    """SIGKILL did not end these within the host's bound."""

    description: str


@dataclass(frozen=True, slots=True)
class HostEnding:
    """The host says why it exits."""

    reason: str


@dataclass(frozen=True, slots=True)
class HostDied:
    """The host process is gone, or could not be started."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """Another agentd knows the group from the journal; its host, if it has one, is heard next."""


@dataclass(frozen=True, slots=True)
class HostMet:
    """The host has dialled in again: what it was told last may not have arrived."""


@dataclass(frozen=True, slots=True)
class Swept:
    """Nothing of the host is left but `leftover` (a description of what cannot be killed)."""

    leftover: str = ""


# --- events: from the hub and from callers ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placed:
    """The hub formed a round with this group in it."""

    placement: Assignment


@dataclass(frozen=True, slots=True)
class MadeSpare:
    """The hub's round is full."""

    reason: str


@dataclass(frozen=True, slots=True)
class RoundStopped:
    """The hub wants the workers of `round` gone."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over, or this node leaves it. A second one only shortens the grace."""

    phase: Phase
    reason: str
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: the only event that judges a deadline."""


GroupEvent: TypeAlias = (
    Begin
    | HostSpawned
    | HostReady
    | WorkersStarted
    | WorkerExited
    | WorkersFailed
    | WorkersDone
    | WorkersUnkillable
    | HostEnding
    | HostDied
    | Resumed
    | HostMet
    | Swept
    | Placed
    | MadeSpare
    | RoundStopped
    | Finish
    | Tick
)

# --- effects ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartHost:
    """Spawn a host for the group."""


@dataclass(frozen=True, slots=True)
class SendPlacement:
    """Tell the host its place: it starts the workers."""

    placement: Assignment


@dataclass(frozen=True, slots=True)
class SendStopRound:
    """Tell the host to stop the workers of the round and report ready."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class SendFinish:
    """Tell the host to stop whatever runs and exit."""

    phase: Phase
    reason: str
    grace: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """End the host, if it is there, and everything it left; answer with `Swept`."""


@dataclass(frozen=True, slots=True)
class HubReady:
    """The member wants its first place."""

    master_port: int


@dataclass(frozen=True, slots=True)
class HubGone:
    """Nothing of the round runs here; the member wants a place in the next, unless `unkillable`."""

    round: int
    master_port: int
    unkillable: str = ""


@dataclass(frozen=True, slots=True)
class HubFailed:
    """The member's part of the round failed."""

    round: int
    failures: tuple[Failure, ...]
    ages: tuple[float, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class HubDone:
    """The member's part of the round succeeded."""

    round: int


@dataclass(frozen=True, slots=True)
class HubLeave:
    """The member cannot take part any more."""

    reason: str


Effect: TypeAlias = (
    StartHost
    | SendPlacement
    | SendStopRound
    | SendFinish
    | Sweep
    | HubReady
    | HubGone
    | HubFailed
    | HubDone
    | HubLeave
)
