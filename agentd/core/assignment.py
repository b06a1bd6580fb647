"""A worker group's place in a formed round, as hub, agentd, host and elastic agent all speak of it."""

from __future__ import annotations

from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """All that the workers of a group need to know. They take consecutive ranks from both bases."""

    round: int
    """Which round of the run; all its groups have the same number, the first is 1."""
    group_rank: int
    """The place of the group among those of the round: GROUP_RANK."""
    group_world_size: int
    """How many groups the round has: GROUP_WORLD_SIZE."""
    rank_base: int
    """The global rank of the group's first worker."""
    world_size: int
    """How many workers the round has: WORLD_SIZE."""
    role_rank_base: int
    """The rank of the group's first worker among those of its role."""
    role_world_size: int
    """How many workers of this role the round has: ROLE_WORLD_SIZE."""
    master_addr: str
    """The host where rank 0 runs, as the other nodes reach it: MASTER_ADDR."""
    master_port: int
    """A port of that host which is kept for the workers: MASTER_PORT."""
    restart_count: int
    """Failures that the run has been restarted after: TORCHELASTIC_RESTART_COUNT."""
    max_restarts: int
    """How many such restarts the run may have."""
