"""The states of runs, groups and workers. Apart from `types`, so that a host loads nothing else of it."""

from __future__ import annotations

import enum


class Phase(str, enum.Enum):
    """Where a worker group, a node's part or a whole run is in its life."""

    PENDING = "pending"
    RENDEZVOUS = "rendezvous"
    WAITING = "waiting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    DONE = "done"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"

    def __str__(self) -> str:
        return self.value


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.LOST})
"""Phases that are never left."""


class WorkerState(str, enum.Enum):
    """torch's `WorkerState`: the state of a worker, or of a group of them."""

    UNKNOWN = "UNKNOWN"
    """What became of it cannot be told: nothing can be asked, or it is lost."""
    INIT = "INIT"
    """Made, and not started yet."""
    HEALTHY = "HEALTHY"
    """Running, and as far as anybody knows well."""
    UNHEALTHY = "UNHEALTHY"
    """Running, and stuck: in uninterruptible sleep for too long."""
    STOPPED = "STOPPED"
    """Stopped from outside: for a restart, or for good."""
    SUCCEEDED = "SUCCEEDED"
    """Ended well, all of it."""
    FAILED = "FAILED"
    """Ended badly."""

    def __str__(self) -> str:
        return self.value

    @staticmethod
    def is_running(state: WorkerState) -> bool:
        """Whether processes exist in this state."""
        return state in (WorkerState.HEALTHY, WorkerState.UNHEALTHY)
