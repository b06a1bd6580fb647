"""Which ended runs are forgotten: the oldest ends first, none too soon, and no more than must be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.retention import KEPT_AT_LEAST, EndedRun, Policy, to_forget

DAY = 86400.0
NOW = 1000 * DAY
ROOMY = Policy(age=14 * DAY, size=1 << 40)


def run(name: str, days: float, size: int = 1) -> EndedRun:
    return EndedRun(run_id=name, incarnation=1, ended_at=NOW - days * DAY, size=size)


def forgotten(*ended: EndedRun, policy: Policy = ROOMY, others: int = 0) -> list[str]:
    return [found.run_id for found in to_forget(ended, others=others, now=NOW, policy=policy)]


def test_runs_go_when_they_are_too_old() -> None:
    assert forgotten(run("new", 1), run("oldest", 30), run("old", 14), run("young", 13.9)) == [
        "oldest",
        "old",
    ]


def test_too_much_on_the_disk_takes_the_oldest_ends_and_no_more_than_needed() -> None:
    policy = Policy(age=14 * DAY, size=100)
    ended = run("c", 1, 30), run("a", 3, 30), run("b", 2, 30)
    assert forgotten(*ended, policy=policy, others=10) == []
    assert forgotten(*ended, policy=policy, others=11) == ["a"]
    assert forgotten(*ended, policy=policy, others=41) == ["a", "b"]


def test_what_live_runs_take_costs_ended_ones_but_not_those_that_ended_just_now() -> None:
    just = run("just", 0.5 * KEPT_AT_LEAST / DAY, 5)
    assert forgotten(run("day", 1, 5), just, policy=Policy(age=14 * DAY, size=100), others=10_000) == ["day"]


def test_too_many_runs_lose_the_oldest_ends() -> None:
    ended = [run(str(number), days=number / 100 + 1) for number in range(10)]
    assert forgotten(*ended, policy=Policy(age=14 * DAY, size=1 << 40, count=7)) == ["9", "8", "7"]


def test_age_zero_keeps_runs_for_an_hour_still() -> None:
    hour = KEPT_AT_LEAST / DAY
    policy = Policy(age=0, size=0, count=0)
    assert forgotten(run("young", 0.9 * hour), run("over", 1.1 * hour), policy=policy) == ["over"]


def test_a_clock_that_was_set_back_takes_nothing() -> None:
    assert forgotten(run("tomorrow", -1, 500), policy=Policy(age=0, size=0)) == []


runs = st.lists(
    st.builds(
        EndedRun,
        run_id=st.sampled_from("abc"),
        incarnation=st.integers(1, 50),
        ended_at=st.floats(0, NOW + DAY),
        size=st.integers(0, 1000),
    ),
    unique_by=lambda run: (run.run_id, run.incarnation),
    max_size=20,
)
policies = st.builds(Policy, age=st.floats(0, 30 * DAY), size=st.integers(0, 5000), count=st.integers(0, 20))


@given(runs, st.integers(0, 5000), policies)
def test_what_is_left_fits_or_is_too_young_and_what_went_is_older(
    ended: list[EndedRun], others: int, policy: Policy
) -> None:
    gone = to_forget(ended, others=others, now=NOW, policy=policy)
    kept = [found for found in ended if found not in gone]
    assert all(NOW - found.ended_at >= KEPT_AT_LEAST for found in gone)
    assert max((found.ended_at for found in gone), default=0) <= min(
        (found.ended_at for found in kept), default=NOW + DAY
    )
    old_enough = [found for found in kept if NOW - found.ended_at >= KEPT_AT_LEAST]
    if old_enough:
        assert all(NOW - found.ended_at < policy.age for found in kept)
        assert len(kept) <= policy.count
        assert others + sum(found.size for found in kept) <= policy.size
    # What is decided again, after it was done, is nothing.
    assert to_forget(kept, others=others, now=NOW, policy=policy) == ()
