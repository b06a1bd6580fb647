"""What an agent runs and how it ended: torch's value types, importable from `agent.server.api` as there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentd.api.states import WorkerState
from agentd.elastic.multiprocessing.errors import ProcessFailure
from agentd.elastic.rendezvous.api import RendezvousHandler
from agentd.elastic.utils.store import Store
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentd.elastic.numa import NumaOptions  # type: ignore[import-not-found,unused-ignore]


@dataclass
class WorkerSpec:
    """One kind of worker: what to run, how often on this node, and how its agents meet. Fields are torch's.

    Raises AssertionError for a size or interval that is not positive, and without an entrypoint.
    """

    role: str
    """The name of this kind of worker: ROLE_NAME of its workers, and in logs, events and metrics."""
    local_world_size: int
    """Workers on this node."""
    rdzv_handler: RendezvousHandler
    """How this agent meets those of other nodes: one of ours, torch's, or your own."""
    fn: Callable[..., Any] | None = None
    """The deprecated name of `entrypoint`."""
    entrypoint: Callable[..., Any] | str | None = None
    """A function, or a program as its path or its name on PATH."""
    args: tuple[Any, ...] = ()
    """Its arguments; `${local_rank}` in texts among them is replaced for each worker."""
    max_restarts: int = 3
    """How many failed rounds are followed by another one. A change of membership is no failure."""
    monitor_interval: float = 0.1
    """Seconds between two looks at what cannot announce itself; what can is acted on at once."""
    master_port: int | None = None
    """MASTER_PORT of the workers; by default what the rendezvous offers."""
    master_addr: str | None = None
    """MASTER_ADDR of the workers; by default what the rendezvous offers."""
    local_addr: str | None = None
    """This node's address. The agent does not read it; it is here for rendezvous handlers."""
    event_log_handler: str = "null"
    """Where the agent's events go (see `agentd.elastic.events`)."""
    numa_options: NumaOptions | None = None
    """Which CPUs workers are bound to; torch's own options serve too. By default none."""
    duplicate_stdout_filters: list[str] | None = None
    """Lines of stdout that contain one of these texts are copied to one file for all workers of a round."""
    duplicate_stderr_filters: list[str] | None = None
    """The same for stderr."""
    virtual_local_rank: bool = False
    """Every worker sees LOCAL_RANK 0 and one device."""
    preload: tuple[str, ...] = ()
    """Modules that workers find imported: they are forked from an interpreter that has done it once. For a
    program that is a Python; see docs/preload.md. Where that cannot be, they are started as ever."""
    standby: bool = False
    """With `preload`: the next round's workers wait, forked already, while this round runs."""

    def __post_init__(self) -> None:
        if self.fn is not None:
            warnings.warn("WorkerSpec.fn is deprecated: use entrypoint", DeprecationWarning, stacklevel=3)
            self.entrypoint = self.fn
        assert self.local_world_size > 0, f"local_world_size must be positive, is {self.local_world_size}"
        assert self.monitor_interval > 0, f"monitor_interval must be positive, is {self.monitor_interval}"
        assert self.entrypoint, "entrypoint is missing: give a function or a program"

    def get_entrypoint_name(self) -> str:
        """The program's or function's name, for people."""
        if isinstance(self.entrypoint, str):
            return Path(self.entrypoint).name
        return getattr(self.entrypoint, "__qualname__", repr(self.entrypoint))


class Worker:
    """One worker: its place among the others, and what runs it."""

    __slots__ = ("global_rank", "id", "local_rank", "role_rank", "role_world_size", "world_size")

    def __init__(
        self,
        local_rank: int,
        global_rank: int = -1,
        role_rank: int = -1,
        world_size: int = -1,
        role_world_size: int = -1,
    ) -> None:
        self.id: Any = None
        """What `_start_workers` answered for it: a pid with the local agent. None before."""
        self.local_rank = local_rank
        """Its number among the workers of this agent, from 0."""
        self.global_rank = global_rank
        """Its number among all workers of the round; -1 before a round is formed, as all that follow."""
        self.role_rank = role_rank
        """Its number among the workers of its role."""
        self.world_size = world_size
        """How many workers the round has."""
        self.role_world_size = role_world_size
        """How many of them have its role."""

    def __str__(self) -> str:
        return (
            f"local_rank={self.local_rank},global_rank={self.global_rank},role_rank={self.role_rank},"
            f"world_size={self.world_size},role_world_size={self.role_world_size}"
        )

    __repr__ = __str__


class WorkerGroup:
    """The workers of an agent and the round they belong to."""

    __slots__ = (
        "group_rank",
        "group_world_size",
        "master_addr",
        "master_port",
        "round",
        "spec",
        "state",
        "store",
        "workers",
    )

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        """What the workers are."""
        self.workers = [Worker(local_rank=local_rank) for local_rank in range(spec.local_world_size)]
        """One for each local rank, in their order."""
        self.store: Store | None = None
        """`None` where the rendezvous hands out ranks itself."""
        self.group_rank: int | None = None
        """This agent's number among the agents of the round."""
        self.group_world_size: int | None = None
        """How many agents the round has."""
        self.state = WorkerState.INIT
        """How the workers were at the last look."""
        self.master_addr: str | None = None
        """Where the workers meet."""
        self.master_port: int | None = None
        """The port there."""
        self.round = 0
        """Grows with each rendezvous; the rendezvous' own number where it gives one."""


@dataclass(frozen=True)
class RunResult:
    """How a group stands, or how a run ended; both maps are by global rank."""

    state: WorkerState
    """SUCCEEDED, FAILED or STOPPED at the end of a run."""
    return_values: Mapping[int, Any] = field(default_factory=dict)
    """What the functions returned; None for programs."""
    failures: Mapping[int, ProcessFailure] = field(default_factory=dict)
    """Workers that failed by themselves. Those the agent stopped are never among them."""
    reason: str = ""
    """Why, where no worker tells: the group was unhealthy or could not be started."""

    def is_failed(self) -> bool:
        """Whether the run ended badly."""
        return self.state is WorkerState.FAILED
