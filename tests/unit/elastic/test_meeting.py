"""The rules of agents that meet in one place, without threads and with time as a number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from agentd.api.states import WorkerState
from agentd.elastic.rendezvous import meeting as rules
from agentd.elastic.rendezvous.meeting import Beat, Meeting, Offer, Rules

RULES = Rules(min_members=2, max_members=3, max_restarts=1, join_timeout=60.0, last_call=5.0)


@dataclass
class Story:
    """A meeting and its clock; each step settles what follows from it."""

    meeting: Meeting
    now: float = 0.0

    def _then(self, meeting: Meeting) -> Meeting:
        meeting = rules.settle(meeting, self.now)
        if rules.ripe(meeting, self.now):
            meeting = rules.form(meeting, self.now, "here", 1000 + meeting.round)
        self.meeting = meeting
        return meeting

    def join(self, *members: int, size: int = 1, role: str = "w") -> Meeting:
        for member in members:
            self._then(rules.join(self.meeting, member, Offer(role, size, self.now), self.now))
        return self.meeting

    def fail(self, member: int, round_: int | None = None) -> Meeting:
        at = self.meeting.round if round_ is None else round_
        return self._then(rules.fail(self.meeting, member, at, "bad luck", {0: "f"}, self.now))

    def succeed(self, member: int) -> Meeting:
        return self._then(rules.succeed(self.meeting, member, self.meeting.round, self.now))

    def gone(self, *members: int) -> Meeting:
        for member in members:
            self._then(rules.gone(self.meeting, member, self.meeting.round, self.now))
        return self.meeting

    def leave(self, member: int) -> Meeting:
        return self._then(rules.leave(self.meeting, member, self.now))

    def passes(self, seconds: float) -> Meeting:
        self.now += seconds
        return self._then(self.meeting)

    def close(self) -> Meeting:
        return self._then(rules.close(self.meeting))


def story(**changes: float) -> Story:
    return Story(Meeting(rules=replace(RULES, **changes)))  # type: ignore[arg-type]


def ranks(meeting: Meeting) -> dict[int, int]:
    return {member: place.group_rank for member, place in meeting.places.items()}


def test_a_full_round_forms_at_once_and_a_smaller_one_after_the_last_call() -> None:
    full, small = story(), story()
    assert full.join(7, 8, 9).beat is Beat.RUNNING
    assert small.join(7, 8).beat is Beat.FORMING
    assert small.passes(4.9).beat is Beat.FORMING
    assert small.passes(0.2).beat is Beat.RUNNING
    assert ranks(small.meeting) == {7: 0, 8: 1}


def test_a_last_call_is_off_when_too_few_are_left() -> None:
    tale = story()
    tale.join(1, 2)
    tale.leave(1)
    assert (tale.meeting.last_call_at, tale.passes(99).beat) == (None, Beat.FORMING)


def test_places_count_workers_and_roles() -> None:
    tale = story()
    tale.join(1, size=2, role="a")
    tale.join(2, size=3, role="b")
    places = tale.join(3, size=1, role="a").places
    assert [places[m].rank_base for m in (1, 2, 3)] == [0, 2, 5]
    assert [places[m].role_rank_base for m in (1, 2, 3)] == [0, 0, 2]
    assert {(p.world_size, p.round) for p in places.values()} == {(6, 1)}
    assert [places[m].role_world_size for m in (1, 2, 3)] == [3, 3, 3]


def test_failures_of_one_round_count_once_and_all_restart_in_their_places() -> None:
    tale = story()
    tale.join(1, 2, 3)
    assert tale.fail(2).beat is Beat.STOPPING
    assert tale.fail(3).restart_count == 1
    tale.join(3, 1)
    assert tale.meeting.beat is Beat.STOPPING, "one may still run the old round"
    again = tale.join(2)
    assert (again.beat, again.round, again.restart_count) == (Beat.RUNNING, 2, 1)
    assert ranks(again) == {1: 0, 2: 1, 3: 2}


def test_without_a_restart_left_the_run_has_failed_and_keeps_the_cause() -> None:
    tale = story(max_restarts=0)
    tale.join(1, 2, 3)
    ended = tale.fail(2)
    assert (ended.beat, ended.outcome, ended.failures) == (Beat.ENDED, WorkerState.FAILED, {0: "f"})
    assert ended.reason == "bad luck; restarts used: 0 of 0"
    assert tale.join(4) is ended


def test_a_newcomer_with_room_stops_the_round_and_costs_nothing() -> None:
    tale = story()
    tale.join(1, 2)
    tale.passes(5)
    stopped = tale.join(9)
    assert (stopped.beat, rules.newcomers(stopped)) == (Beat.STOPPING, 1)
    again = tale.join(1, 2)
    assert (ranks(again), again.restart_count) == ({1: 0, 2: 1, 9: 2}, 0)


def test_a_spare_waits_disturbs_nobody_and_takes_a_free_place() -> None:
    tale = story()
    running = tale.join(1, 2, 3, 4)
    assert (running.beat, list(running.waiting), rules.newcomers(running)) == (Beat.RUNNING, [4], 0)
    assert rules.gives_up_at(tale.passes(1000), 4) is None
    tale.gone(1)
    tale.gone(2, 3)
    assert tale.meeting.beat is Beat.FORMING, "the spare alone does not fill the places of survivors"
    assert ranks(tale.join(3, 2)) == {2: 0, 3: 1, 4: 2}


def test_a_spare_does_not_take_the_place_of_a_survivor_that_is_on_its_way_back() -> None:
    tale = story(min_members=1, max_members=1)
    tale.join(1, 2)
    tale.fail(1)
    tale.gone(1)
    assert tale.meeting.beat is Beat.FORMING
    assert ranks(tale.join(1)) == {1: 0}


def test_survivors_are_waited_for_also_without_a_last_call() -> None:
    tale = story(min_members=1, last_call=0.0)
    tale.join(1)
    tale.join(2)
    tale.gone(1)
    assert tale.passes(4.9).beat is Beat.FORMING
    assert ranks(tale.join(1)) == {1: 0, 2: 1}
    tale.fail(1)
    tale.gone(1, 2)
    tale.join(2)
    assert ranks(tale.passes(5)) == {2: 0}, "it left without a word"


def test_a_member_that_goes_unasked_leaves_and_the_others_go_on_at_once() -> None:
    tale = story()
    tale.join(1, 2, 3)
    assert tale.gone(1).beat is Beat.STOPPING
    again = tale.join(2, 3)
    assert (ranks(again), again.restart_count, again.beat) == ({2: 0, 3: 1}, 0, Beat.RUNNING)


def test_below_the_minimum_the_others_wait_and_give_up_by_the_time_they_began_to() -> None:
    tale = story()
    tale.join(1, 2)
    tale.passes(5)
    tale.passes(100)
    tale.gone(1)
    tale.join(2)
    assert (tale.meeting.beat, rules.gives_up_at(tale.meeting, 2)) == (Beat.FORMING, 165.0)


def test_who_cannot_stop_in_time_is_left_out() -> None:
    tale = story()
    tale.join(1, 2, 3)
    tale.fail(1)
    tale.join(1, 2)
    assert rules.due(tale.meeting) == 60.0
    assert ranks(tale.passes(60)) == {1: 0, 2: 1}


def test_the_run_succeeds_with_its_last_member() -> None:
    tale = story()
    tale.join(1, 2, 3)
    tale.succeed(1)
    tale.succeed(3)
    assert tale.meeting.beat is Beat.RUNNING
    assert tale.succeed(2).outcome is WorkerState.SUCCEEDED


def test_a_done_member_leaves_without_harm_and_comes_again_when_it_is_needed() -> None:
    left, needed = story(), story()
    for tale in (left, needed):
        tale.join(1, 2, 3)
        tale.succeed(1)
    assert left.gone(1).beat is Beat.RUNNING
    left.succeed(2)
    assert left.succeed(3).outcome is WorkerState.SUCCEEDED
    needed.fail(2)
    assert needed.join(3, 2).beat is Beat.FORMING
    assert ranks(needed.join(1)) == {1: 0, 2: 1, 3: 2}


def test_a_newcomer_does_not_disturb_a_round_that_is_nearly_done() -> None:
    tale = story()
    tale.join(1, 2)
    tale.passes(5)
    tale.succeed(1)
    assert tale.join(9).beat is Beat.RUNNING


def test_closed_the_round_goes_on_and_its_failure_ends_the_run() -> None:
    tale = story()
    tale.join(1, 2, 3)
    assert tale.close().beat is Beat.RUNNING
    assert tale.fail(1).outcome is WorkerState.FAILED


def test_what_is_said_of_an_old_round_changes_nothing() -> None:
    tale = story()
    tale.join(1, 2, 3)
    tale.fail(1)
    second = tale.join(1, 2, 3)
    assert tale.fail(2, round_=1) == second
    assert rules.gone(second, 1, 1, 0.0) is second
    assert rules.succeed(second, 1, 1, 0.0) is second


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["join", "fail", "succeed", "gone", "leave", "passes"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(MOVES)
def test_whatever_happens_rounds_never_overlap_and_sizes_and_budget_hold(
    moves: list[tuple[str, int]],
) -> None:
    tale = story()
    for move, member in moves:
        before = tale.meeting
        act = partial(tale.passes, 5.0) if move == "passes" else partial(getattr(tale, move), member)
        after = act()
        if after.round != before.round:
            assert after.round == before.round + 1
            assert not (before.busy - {member}) or before.beat is Beat.STOPPING
            assert 2 <= len(after.places) <= 3
            assert sorted(ranks(after).values()) == list(range(len(after.places)))
            kept = [m for m in before.order if m in after.places]
            assert list(after.order)[: len(kept)] == kept, "survivors keep their order"
        assert after.restart_count <= 1
        assert not (after.busy & after.waiting.keys())
        assert (after.outcome is None) == (after.beat is not Beat.ENDED)
