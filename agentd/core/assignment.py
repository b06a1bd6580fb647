"""A worker group's place in a formed round, as hub, agentd, host and elastic agent all speak of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """All that the workers of a group need to know. They take consecutive ranks from both bases."""

    round: int
    group_rank: int
    group_world_size: int
    rank_base: int
    world_size: int
    role_rank_base: int
    role_world_size: int
    master_addr: str
    master_port: int
    restart_count: int
    max_restarts: int
