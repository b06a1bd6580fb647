"""A rendezvous that coordinates: it hands out ranks, keeps the budget and says when a round is over.

A plain `RendezvousHandler`, as torch has it, only forms rounds; each agent then exchanges ranks through a
store and counts restarts alone. A handler that also has the methods of `CoordinatedRendezvous` takes these
decisions for all agents of the run. The agent finds out by looking; nothing has to be registered.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from agentd.api.states import WorkerState
from agentd.core.assignment import Assignment
from agentd.elastic.rendezvous.api import RendezvousInfo, RendezvousStateError, RendezvousStoreInfo
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentd.elastic.agent.server.spec import WorkerSpec
    from agentd.elastic.multiprocessing.errors import ProcessFailure
    from agentd.elastic.utils.store import Store
    from agentd.procs.waiter import Waiter


class Verdict(enum.Enum):
    """What becomes of the run after a round."""

    RESTART = "restart"
    """Another round follows: the agent stops what still runs and calls `next_rendezvous` again."""
    END = "end"
    """None follows: the agent's `run` ends, failed after a failure, succeeded after success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStart:
    """A worker process that has just been started."""

    local_rank: int
    """Its number among the agent's workers."""
    rank: int
    """Its number among all workers of the round."""
    role_rank: int
    """Its number among those of its role."""
    pid: int
    """The process that leads its session."""
    start_time: int
    """With the pid it names the process for good (see `agentd.procs.identity`)."""
    started_at: float
    """Seconds since the epoch."""
    log_dir: str
    """The folder of its log files and its error file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExit:
    """A worker process that has just ended. One of `exit_code` and `signal` is set."""

    local_rank: int
    """Its number among the agent's workers."""
    rank: int
    """Its number among all workers of the round."""
    pid: int
    """The process that led its session."""
    exit_code: int | None
    """If it ended by itself."""
    signal: int | None
    """The one that ended it, if one did."""
    torn_down: bool
    """The agent had signalled it: its end is no failure."""


class AssignedRendezvousInfo(RendezvousInfo):
    """A formed round that carries the agent's place, so that no store is needed."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._rank = assignment.group_rank
        self._world_size = assignment.group_world_size
        self._bootstrap_store_info = RendezvousStoreInfo(assignment.master_addr, assignment.master_port)

    @property
    def assignment(self) -> Assignment:
        """The agent's place."""
        return self._assignment

    @property
    def store(self) -> Store:
        """There is none: raises RendezvousStateError."""
        raise RendezvousStateError("this rendezvous hands out ranks itself and has no store")


class RunEnded(Exception):
    """The run as a whole is over, whatever the workers here do: the agent stops them and answers with this.

    A coordinated handler may raise it from `next_rendezvous`, `on_failure`, `on_done` and `round_over`.
    """

    def __init__(
        self, state: WorkerState, reason: str, failures: Mapping[int, ProcessFailure] | None = None
    ) -> None:
        """`failures` holds by global rank those this agent is to answer with, its own or others'."""
        super().__init__(reason)
        self.state = state
        """What the agent answers: SUCCEEDED, FAILED or STOPPED."""
        self.reason = reason
        """Why the run is over, for people."""
        self.failures = failures or {}
        """Those the agent answers with, by global rank."""


@runtime_checkable
class AttachedRendezvous(Protocol):
    """The further method of a handler that wants to know which agent it serves."""

    def attach(
        self, spec: WorkerSpec, waiter: Waiter, request_stop: Callable[[float | None], object]
    ) -> None:
        """Called on the thread of the agent's `run`, before anything else of it.

        The handler waits in `waiter` from now on. `request_stop(grace_s)`, from any thread, stops the agent
        (`None`: with its own grace).
        """


@runtime_checkable
class WakingRendezvous(Protocol):
    """The further method of a coordinated handler that need not be asked for `round_over` at intervals.

    Without it the agent asks each `monitor_interval`.
    """

    def wakes_waiter(self) -> None:
        """Does nothing. To have it says: when `round_over` changes its answer, the agent's waiter wakes."""


@runtime_checkable
class CoordinatedRendezvous(Protocol):
    """The further methods of a handler that decides for all agents of a run.

    The agent calls them on the thread of its `run`, in this order for each round:

    `next_rendezvous` -> `on_workers_started` -> `on_worker_exit`... -> one of `on_failure`, `round_over`
    answering True, `on_done` -> `on_late_failure` if there was one -> `on_round_gone` -> `next_rendezvous` or
    the end of `run`.

    `next_rendezvous`, `on_failure` and `on_done` may wait. They do it in `wait` of the agent's own `Waiter`
    (see `AttachedRendezvous`): then the agent goes on stopping and reaping meanwhile, and a stop of the agent
    ends the wait with `StopRequested`, which the handler lets pass.
    """

    def on_workers_started(self, round: int, workers: Sequence[WorkerStart]) -> None:
        """All workers of the round run here. Not called if one could not be started."""

    def on_worker_exit(self, round: int, worker: WorkerExit) -> None:
        """One worker has ended, for whatever reason. Called from inside a wait; must not wait itself.

        Never before `on_workers_started`, unless that is not called at all.
        """

    def on_failure(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> Verdict:
        """The round failed here; the others of the group have been signalled already.

        `failures` holds by global rank those that failed by themselves. It is empty if the round could not be
        started or the agent found it unhealthy; `reason` then tells why.
        """

    def on_late_failure(self, round: int, failures: Mapping[int, ProcessFailure]) -> None:
        """Workers had failed by themselves when the round was stopped from elsewhere: maybe they were first.

        Decides nothing. Not called for a round that `on_failure` was called for.
        """

    def on_done(self, round: int) -> Verdict:
        """All workers succeeded here and nothing of them is left. Waits for the others of the run."""

    def round_over(self) -> bool:
        """Whether the running round must go (a failure elsewhere, a change of membership). Asked often."""

    def on_round_gone(self, round: int) -> None:
        """No process of the round is left here. Never called while one cannot be killed."""
