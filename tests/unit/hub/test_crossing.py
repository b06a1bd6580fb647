"""Words that crossed a newer place on their way: no offer, and no lost one either."""

from __future__ import annotations

from agentd.hub.memberbook import MemberBook
from agentd.hub.messages import (
    Assignment,
    MemberCondition,
    MemberReady,
    MemberState,
    RoundGone,
    StopRound,
)
from agentd.hub.state import MemberKey
from tests.unit.hub.rig import Rig, make_spec

LATE = 100.0
B = MemberKey("b", "default")


def left_out() -> Rig:
    """Round 1 of a and b was stopped; b, which has not read of it yet, did not answer and is left out."""
    rig = Rig(make_spec(fewest=1, most=2))
    rig.join("a", "b")
    rig.ready("b", round_=0)
    rig.gone("a")
    rig.wait(LATE)
    assert rig.state.out.keys() == {B}
    assert rig.placed()["a"].round == 2
    return rig


def hello_of(rig: Rig, condition: MemberCondition, round_: int) -> None:
    rig.hello("b", MemberState(role="default", local_world_size=1, condition=condition, round=round_))


def test_offer_that_crossed_a_place_forms_no_round_beside_it() -> None:
    rig = left_out()
    rig.ready("b", round_=0)
    assert rig.stopped() == ["a", "b"]  # of round 1
    rig.wait(LATE)
    assert B not in rig.state.waiting
    assert rig.placed() == {}
    rig.gone("b", round_=1)
    rig.gone("a")
    assert {place.round for place in rig.placed().values()} == {3}
    assert list(rig.state.order) == [("a", "default"), B]


def test_answer_about_an_older_round_that_crossed_a_place_is_no_offer() -> None:
    rig = Rig(make_spec(fewest=1, most=2, max_restarts=3))
    rig.join("a", "b")
    rig.fail("a")
    rig.gone("b")
    rig.gone("a")
    assert rig.placed()["b"].round == 2
    rig.fail("a")
    rig.gone("a")
    rig.wait(LATE)
    assert rig.state.out.keys() == {B}
    rig.gone("b", round_=1)
    assert B not in rig.state.waiting
    rig.gone("b", round_=2)
    rig.gone("a")
    assert B in rig.state.live


def test_offer_of_a_new_session_counts_though_a_place_was_lost_with_the_old_one() -> None:
    rig = left_out()
    rig.break_stream("b")
    hello_of(rig, MemberCondition.JOINING, 0)
    rig.ready("b", round_=0)
    rig.gone("a")
    assert rig.placed().keys() == {"a", "b"}


def test_offer_of_a_node_the_hub_took_for_lost_counts() -> None:
    rig = left_out()
    rig.silence("b")
    hello_of(rig, MemberCondition.JOINING, 0)
    rig.ready("b", round_=0)
    rig.gone("a")
    assert rig.placed().keys() == {"a", "b"}


def test_offer_older_than_the_round_its_session_began_with_is_none() -> None:
    rig = left_out()
    rig.break_stream("b")
    hello_of(rig, MemberCondition.RUNNING, 1)
    rig.ready("b", round_=0)
    assert B not in rig.state.waiting
    rig.gone("b", round_=1)
    rig.gone("a")
    assert rig.placed().keys() == {"a", "b"}


def test_hub_that_began_again_takes_the_offer_of_a_member_that_has_heard_less() -> None:
    before = Rig(make_spec(["a", "b"], fewest=1, most=2))
    before.join("a", "b")
    rig = Rig(before.state.plan.spec, record=before.records[-1])
    for node in ("a", "b"):
        member = MemberState(role="default", local_world_size=1, condition=MemberCondition.JOINING)
        rig.hello(node, member)
        rig.ready(node, round_=0)
    rig.gone("a", "b")
    assert {place.round for place in rig.placed().values()} == {2}


def test_member_that_leaves_and_offers_itself_again_answers_for_its_round_with_that() -> None:
    rig = Rig(make_spec(fewest=1, most=2))
    rig.join("a", "b")
    rig.placed()
    rig.leave("b")
    rig.ready("b", round_=1)
    rig.gone("a")
    assert rig.placed().keys() == {"a", "b"}


def test_member_that_leaves_and_offers_itself_before_it_heard_of_its_round_is_waited_for() -> None:
    rig = Rig(make_spec(fewest=1, most=2))
    rig.join("a", "b")
    rig.placed()
    rig.leave("b")
    rig.ready("b", round_=0)
    rig.gone("a")
    assert rig.placed() == {}
    rig.gone("b", round_=1)
    assert rig.placed().keys() == {"a", "b"}


# --- on the node --------------------------------------------------------------------------------------------


def place(round_: int) -> Assignment:
    return Assignment(
        role="x",
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


def offer(round_: int, port: int) -> MemberReady:
    return MemberReady(role="x", local_world_size=2, master_port=port, round=round_)


def test_group_that_has_not_heard_of_its_place_offers_nothing_for_it() -> None:
    """The place is on its way from the session to the group, which will start its workers."""
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    assert book.assigned(place(1))
    assert book.ready("x", 2, 4002, 0) == offer(0, 4002)
    assert book.states()[0].condition is MemberCondition.RUNNING
    assert book.stop(StopRound(round=1, reason="")) == ([], True)
    assert book.ready("x", 2, 4003, 0) == offer(0, 4003)
    assert book.gone("x", 1, 4004, "") == RoundGone(role="x", round=1, master_port=4004)


def test_group_that_has_heard_of_its_place_says_so_when_it_offers_itself_again() -> None:
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    book.assigned(place(1))
    assert book.ready("x", 2, 4002, 1) == offer(1, 4002)


def test_member_that_comes_back_has_still_heard_of_its_place() -> None:
    book = MemberBook()
    book.ready("x", 2, 4001, 0)
    book.leave("x", "asked to")
    assert not book.assigned(place(3))
    assert book.ready("x", 2, 4002, 0) == offer(3, 4002)
