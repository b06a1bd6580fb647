"""Ranks are a permutation, however many groups and roles there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.ranks import RankBases, deal_ranks, named

GROUPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=12)


@given(GROUPS)
def test_ranks_and_role_ranks_are_permutations(groups: list[tuple[str, int]]) -> None:
    ranks: list[int] = []
    by_role: dict[str, list[int]] = {}
    for (role, size), bases in zip(groups, deal_ranks(groups), strict=True):
        ranks += range(bases.rank, bases.rank + size)
        by_role.setdefault(role, []).extend(range(bases.role_rank, bases.role_rank + size))
        assert bases.world_size == sum(size for _, size in groups)
        assert bases.role_world_size == sum(size for other, size in groups if other == role)
    assert ranks == list(range(len(ranks)))
    assert all(found == list(range(len(found))) for found in by_role.values())


def test_two_roles_count_on_their_own() -> None:
    assert deal_ranks([("a", 2), ("b", 3), ("a", 1)]) == [
        RankBases(0, 6, 0, 3),
        RankBases(2, 6, 0, 3),
        RankBases(5, 6, 2, 3),
    ]


def test_ranks_are_named_as_one_or_as_several_and_never_all_of_many() -> None:
    assert named({7}) == "rank 7"
    assert named({1, 0}) == "ranks 0, 1"
    assert named(range(10)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert named(()) == "ranks none"
