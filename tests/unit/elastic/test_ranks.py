"""The ranks of an agent's workers, and what agents exchange to agree on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.ranks import RankBases, deal_ranks
from agentd.elastic.agent.server.ranks import RoleInstance, identical_bases, workers_from


@given(st.integers(1, 9), st.integers(1, 9))
def test_alike_agents_need_no_exchange(agents: int, size: int) -> None:
    assert deal_ranks([("w", size)] * agents) == [
        identical_bases(rank, agents, size) for rank in range(agents)
    ]


def test_workers_take_consecutive_ranks_from_both_bases() -> None:
    workers = workers_from(RankBases(5, 9, 2, 4), 2)
    assert [(worker.local_rank, worker.global_rank, worker.role_rank) for worker in workers] == [
        (0, 5, 2),
        (1, 6, 3),
    ]
    assert {(worker.world_size, worker.role_world_size) for worker in workers} == {(9, 4)}


def test_what_is_exchanged_reads_as_it_was_written() -> None:
    instance = RoleInstance("a", 4, 2)
    assert RoleInstance.from_json(instance.to_json()) == instance


def test_garbage_in_the_store_is_an_error() -> None:
    with pytest.raises((ValueError, KeyError)):
        RoleInstance.from_json(b"{}")
