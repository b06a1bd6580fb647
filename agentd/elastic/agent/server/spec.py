"""What an agent runs and how it ended: torch's value types, importable from `agent.server.api` as there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentd.api.states import WorkerState
from agentd.elastic.multiprocessing.errors import ProcessFailure
from agentd.elastic.rendezvous.api import RendezvousHandler
from agentd.elastic.utils.store import Store


@dataclass
class WorkerSpec:
    """One kind of worker: what to run, how often on this node, and how its agents meet.

    The program is a path or a name looked up on PATH; `${local_rank}` in a text argument is replaced for
    each worker. `fn` is the deprecated name of `entrypoint`.
    """

    role: str
    local_world_size: int
    rdzv_handler: RendezvousHandler
    fn: Callable[..., Any] | None = None
    entrypoint: Callable[..., Any] | str | None = None
    args: tuple[Any, ...] = ()
    max_restarts: int = 3
    monitor_interval: float = 0.1
    """Seconds between two looks at what cannot announce itself; what can is acted on at once."""
    master_port: int | None = None
    master_addr: str | None = None
    """Given, these two override what the rendezvous offers."""
    local_addr: str | None = None
    virtual_local_rank: bool = field(default=False, kw_only=True)
    """Every worker sees LOCAL_RANK 0 and one device."""

    def __post_init__(self) -> None:
        if self.fn is not None:
            warnings.warn("WorkerSpec.fn is deprecated: use entrypoint", DeprecationWarning, stacklevel=3)
            self.entrypoint = self.fn
        assert self.local_world_size > 0, f"local_world_size must be positive, is {self.local_world_size}"
        assert self.monitor_interval > 0, f"monitor_interval must be positive, is {self.monitor_interval}"
        assert self.entrypoint, "entrypoint is missing: give a program"

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
        """What `_start_workers` answered for it: a pid with the local agent."""
        self.local_rank = local_rank
        self.global_rank = global_rank
        self.role_rank = role_rank
        self.world_size = world_size
        self.role_world_size = role_world_size

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
        self.workers = [Worker(local_rank=local_rank) for local_rank in range(spec.local_world_size)]
        self.store: Store | None = None
        """`None` where the rendezvous hands out ranks itself."""
        self.group_rank: int | None = None
        self.group_world_size: int | None = None
        self.state = WorkerState.INIT
        self.master_addr: str | None = None
        self.master_port: int | None = None
        self.round = 0
        """Grows with each rendezvous; the rendezvous' own number where it gives one."""


@dataclass(frozen=True)
class RunResult:
    """How a group stands, or how a run ended; both maps are by global rank."""

    state: WorkerState
    return_values: Mapping[int, Any] = field(default_factory=dict)
    failures: Mapping[int, ProcessFailure] = field(default_factory=dict)
    """Workers that failed by themselves. Those the agent stopped are never among them."""
    reason: str = ""
    """Why, where no worker tells: the group was unhealthy or could not be started."""

    def is_failed(self) -> bool:
        """Whether the run ended badly."""
        return self.state is WorkerState.FAILED
