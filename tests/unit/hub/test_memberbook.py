"""What a node says again on a new stream, and what it does not believe."""

from __future__ import annotations

from agentd.api.types import Failure
from agentd.hub.memberbook import MemberBook
from agentd.hub.messages import (
    Assignment,
    MemberCondition,
    MemberFailed,
    MemberLeaving,
    MemberReady,
    MemberState,
    RoundGone,
    StopRound,
)


def place(round_: int, role: str = "x") -> Assignment:
    return Assignment(
        role=role,
        round=round_,
        group_rank=0,
        group_world_size=1,
        rank_base=0,
        world_size=1,
        role_rank_base=0,
        role_world_size=1,
        master_addr="a",
        master_port=1,
        restart_count=0,
        max_restarts=0,
    )


def running(round_: int = 1) -> MemberBook:
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    assert book.assigned(place(round_))
    return book


def test_offer_is_repeated_until_there_is_a_place() -> None:
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    assert book.unanswered(0.0) == [MemberReady(role="x", local_world_size=2, master_port=4001, round=0)]
    assert book.needs_hub
    book.assigned(place(1))
    assert book.unanswered(0.0) == []
    assert not book.needs_hub


def test_failure_that_is_repeated_has_grown_older() -> None:
    book = running()
    book.failed("x", 1, [(Failure(rank=1), 0.5)], "", now=100.0)
    [message] = book.unanswered(103.0)
    assert isinstance(message, MemberFailed)
    assert message.failures[0].age == 3.5
    assert book.needs_hub


def test_idle_member_answers_a_stop_at_once_with_the_port_it_holds() -> None:
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    answers, act = book.stop(StopRound(round=3, reason=""))
    assert answers == [RoundGone(role="x", round=3, master_port=4001)]
    assert not act


def test_place_in_a_round_that_was_stopped_already_is_not_taken() -> None:
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    book.stop(StopRound(round=3, reason=""))
    assert not book.assigned(place(3))
    assert book.assigned(place(4))


def test_ready_after_a_stop_is_the_answer_to_it() -> None:
    book = running(round_=2)
    assert book.stop(StopRound(round=2, reason="")) == ([], True)
    assert book.ready("x", 2, 4002, 2) == RoundGone(role="x", round=2, master_port=4002)


def test_stop_that_is_told_again_is_acted_on_once() -> None:
    book = running()
    assert book.stop(StopRound(round=1, reason="")) == ([], True)
    assert book.stop(StopRound(round=1, reason="")) == ([], False)


def test_stop_of_an_older_round_does_not_touch_the_running_one() -> None:
    book = running(round_=2)
    assert book.stop(StopRound(round=1, reason="")) == ([], False)


def test_done_member_that_is_to_run_again_has_to_act() -> None:
    book = running()
    book.done("x", 1)
    assert book.stop(StopRound(round=1, reason="")) == ([], True)


def test_host_lost_while_waiting_answers_a_stop_only_with_a_new_port() -> None:
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    book.failed("x", 0, [], "the host was lost", now=0.0)
    assert book.stop(StopRound(round=1, reason="")) == ([], False)
    assert book.ready("x", 2, 4002, 0) == RoundGone(role="x", round=1, master_port=4002)


def test_leaving_member_is_repeated_until_its_workers_are_gone() -> None:
    book = running()
    book.leave("x", "asked to")
    assert book.unanswered(0.0) == [MemberLeaving(role="x", reason="asked to")]
    assert book.states()[0].condition is MemberCondition.RUNNING
    assert book.gone("x", 1, 4002, "") == RoundGone(role="x", round=1, master_port=0)
    assert book.states() == ()
    assert book.gone("x", 1, 4002, "") is None


def test_member_that_cannot_be_killed_is_said_once_and_forgotten() -> None:
    book = running()
    gone = book.gone("x", 1, 0, "pid 9 in D state")
    assert gone == RoundGone(role="x", round=1, unkillable="pid 9 in D state")
    assert book.states() == ()


def test_a_member_of_an_earlier_agentd_is_spoken_for_as_it_was() -> None:
    book = MemberBook()
    running = MemberState(role="x", local_world_size=2, condition=MemberCondition.RUNNING, round=3)
    book.resume(running)
    assert book.states() == (running,)
    assert book.unanswered(0.0) == []
    assert not book.needs_hub
    assert book.assigned(place(3)) is False
    answers, act = book.stop(StopRound(round=3, reason="r"))
    assert (answers, act) == ([], True)
    assert book.gone("x", 3, 500, "") == RoundGone(role="x", round=3, master_port=500)
    assert book.assigned(place(4)) is True
