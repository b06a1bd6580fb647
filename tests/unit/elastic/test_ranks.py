"""Ranks are a permutation, in whatever way agents agree on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.agent.server.ranks import (
    RankBases,
    RoleInstance,
    bases_of,
    identical_bases,
    workers_from,
)

AGENTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=12)


@given(AGENTS)
def test_global_and_role_ranks_are_permutations(agents: list[tuple[str, int]]) -> None:
    instances = [RoleInstance(role, rank, size) for rank, (role, size) in enumerate(agents)]
    by_role: dict[str, list[int]] = {}
    ranks: list[int] = []
    for instance, bases in zip(instances, bases_of(instances), strict=True):
        for worker in workers_from(bases, instance.local_world_size):
            ranks.append(worker.global_rank)
            by_role.setdefault(instance.role, []).append(worker.role_rank)
            assert worker.world_size == sum(size for _role, size in agents)
            assert worker.role_world_size == sum(size for role, size in agents if role == instance.role)
    assert ranks == list(range(len(ranks)))
    assert all(found == list(range(len(found))) for found in by_role.values())


@given(st.integers(1, 9), st.integers(1, 9))
def test_alike_agents_need_no_exchange(agents: int, size: int) -> None:
    exchanged = bases_of([RoleInstance("w", rank, size) for rank in range(agents)])
    assert exchanged == [identical_bases(rank, agents, size) for rank in range(agents)]


def test_two_roles_count_on_their_own() -> None:
    instances = [RoleInstance("a", 0, 2), RoleInstance("b", 1, 3), RoleInstance("a", 2, 1)]
    assert bases_of(instances) == [
        RankBases(0, 6, 0, 3),
        RankBases(2, 6, 0, 3),
        RankBases(5, 6, 2, 3),
    ]


def test_what_is_exchanged_reads_as_it_was_written() -> None:
    instance = RoleInstance("a", 4, 2)
    assert RoleInstance.from_json(instance.to_json()) == instance


def test_garbage_in_the_store_is_an_error() -> None:
    with pytest.raises((ValueError, KeyError)):
        RoleInstance.from_json(b"{}")
