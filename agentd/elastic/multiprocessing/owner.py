"""What a group of workers is given by its owner, and each worker by its group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from agentd.procs.exits import ExitInfo
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentd.procs.zygote.keeper import Keeper

__all__ = ["GroupOwner"]

Args: TypeAlias = "Mapping[int, tuple[Any, ...]]"
Envs: TypeAlias = "dict[int, dict[str, str]]"


@dataclass(frozen=True, kw_only=True)
class GroupOwner:
    """What the owner of a group gives and asks, beyond torch's interface."""

    waiter: Waiter | None = None
    """The group lives in its waits; a waiter of the group's own by default, served by `wait` and `close`."""
    base_env: Mapping[str, str] | None = None
    """What workers share; `envs` go over it. This process' own environment by default."""
    cwd: str | None = None
    """The workers' directory, this process' own by default."""
    token: str = ""
    """Marks the workers' processes, see `agentd.procs.tree.Marks`."""
    cgroup: str = ""
    """A cgroup folder that holds nothing but the workers and what they start."""
    owns_descendants: bool = False
    """Everything that descends from this process belongs to them; for a process that does nothing else."""
    on_exit: Callable[[int, ExitInfo, bool], object] | None = None
    """Called from inside a wait: local rank, exit, and whether the worker was signalled before it ended."""
    forks: Keeper | None = None
    """Forks the workers, as far as it can; the others are started by themselves."""
    explain: Callable[[int], str] | None = None
    """Asked, with its pid, about a worker that failed without a report; a text becomes the message."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a worker's process is to be started with."""

    local_rank: int
    env: dict[str, str]
    """All of its environment."""
    cwd: str | None
    stdout_fd: int | None
    stderr_fd: int | None
    """`None`: this process' own."""
    cpus: frozenset[int] | None
    """The CPUs that the calling thread is bound to for it; `None` if it is not."""
