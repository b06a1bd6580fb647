"""How ranks are dealt out: each group of a round gets consecutive ones, of the round and of its role.

And how some are named in a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from agentd.quickdata import dataclass

NAMED = 8
"""Ranks in one sentence."""


@dataclass(frozen=True, slots=True)
class RankBases:
    """Where a group's consecutive ranks begin, and how many there are in all."""

    rank: int
    world_size: int
    role_rank: int
    role_world_size: int


def deal_ranks(groups: Sequence[tuple[str, int]]) -> list[RankBases]:
    """The bases of all groups, each told by its role and size, in the order of their group ranks."""
    world_size = sum(size for _, size in groups)
    role_sizes: Counter[str] = Counter()
    for role, size in groups:
        role_sizes[role] += size
    bases: list[RankBases] = []
    dealt, dealt_to = 0, Counter[str]()
    for role, size in groups:
        bases.append(RankBases(dealt, world_size, dealt_to[role], role_sizes[role]))
        dealt += size
        dealt_to[role] += size
    return bases


def named(ranks: Collection[int]) -> str:
    """`rank 3`, `ranks 0, 1`, or the first few and how many more there are."""
    told, more = sorted(ranks)[:NAMED], len(ranks) - NAMED
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"{noun} {', '.join(map(str, told)) or 'none'}" + (f" and {more} more" if more > 0 else "")
