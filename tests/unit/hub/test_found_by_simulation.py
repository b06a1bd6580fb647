"""What random histories have brought to light, each in as few words as it takes."""

from __future__ import annotations

from agentd.api.types import Phase
from agentd.hub.memberbook import MemberBook
from agentd.hub.messages import MemberCondition, MemberState, RoundGone, StopRound
from agentd.hub.state import HubRecord
from tests.unit.hub.rig import Rig, make_spec

RUNNING, JOINING = MemberCondition.RUNNING, MemberCondition.JOINING


def member(condition: MemberCondition, round_: int, role: str = "default") -> MemberState:
    return MemberState(role=role, local_world_size=1, condition=condition, round=round_)


def test_leaving_member_whose_stream_breaks_is_waited_for_while_its_workers_may_run() -> None:
    rig = Rig(make_spec(fewest=1, most=2))
    rig.join("a", "b")
    rig.leave("b")
    rig.gone("a")
    rig.break_stream("b")
    assert rig.placed().keys() == {"a", "b"}, "round 1"
    rig.hello("b", member(RUNNING, 1))
    rig.leave("b")
    assert not rig.placed(), "b has its grace"
    rig.gone("b")
    assert rig.placed().keys() == {"a"}


def test_leaving_member_that_does_not_come_back_is_waited_for_one_lease() -> None:
    rig = Rig(make_spec(fewest=1, most=2))
    rig.join("a", "b")
    rig.placed()
    rig.leave("b")
    rig.gone("a")
    rig.break_stream("b")
    rig.wait(4.9)
    assert not rig.placed()
    rig.wait(1.2)
    assert rig.placed().keys() == {"a"}


def test_a_hello_may_use_the_budget_up_and_not_overdraw_it() -> None:
    rig = Rig(make_spec(fewest=1, most=2, max_restarts=3))
    rig.hello("a", restart_count=2)
    assert (rig.state.restart_count, rig.records[-1].restart_count) == (2, 2)
    written = len(rig.records)
    rig.hello("b", restart_count=1)
    assert (rig.state.restart_count, len(rig.records)) == (2, written)
    rig.hello("c", restart_count=2**31)
    assert rig.state.restart_count == 3


def two_roles() -> Rig:
    """Nodes a and b with two members each, of which two are enough; b was lost and a went on alone."""
    rig = Rig(make_spec(roles=("one", "two"), fewest=2, most=4))
    for node in ("a", "b"):
        rig.join(node, role="one")
        rig.join(node, role="two")
    rig.silence("b")
    for role in ("one", "two"):
        rig.gone("a", role=role)
    rig.wait(1.1)
    assert rig.state.round == 2
    rig.placed()
    rig.stopped()
    return rig


def test_node_has_no_place_while_another_of_its_members_still_runs_an_older_round() -> None:
    rig = two_roles()
    rig.hello("b", member(RUNNING, 1, "one"), member(RUNNING, 1, "two"))
    assert rig.take(StopRound) == [("b", StopRound(round=1, reason="the run went on without this node"))]
    rig.gone("b", role="one", round_=1)
    assert not rig.stopped(), "nobody is disturbed for a member that cannot start yet"
    rig.gone("b", role="two", round_=1)
    assert rig.stopped() == ["a"]
    for role in ("one", "two"):
        rig.gone("a", role=role)
    assert len(rig.placed()) == 4


def test_member_that_did_not_stop_in_time_keeps_its_node_out_of_the_next_round() -> None:
    rig = Rig(make_spec(roles=("one", "two"), fewest=1, most=4, max_restarts=1, stop_grace=1.0))
    for node in ("a", "b"):
        rig.join(node, role="one")
        rig.join(node, role="two")
    rig.placed()
    rig.fail("a", role="one")
    for node, role in (("a", "one"), ("a", "two"), ("b", "one")):
        rig.gone(node, role=role)
    rig.wait(20)
    assert rig.placed().keys() == {"a/one", "a/two"}
    rig.gone("b", role="two", round_=1)
    assert "a" in rig.stopped(), "now both members of b may come"


def test_late_report_of_a_round_that_was_counted_costs_no_second_restart() -> None:
    rig = Rig(make_spec(fewest=2, most=2, max_restarts=3))
    rig.join("a", "b")
    rig.fail("b", reason="the host was lost")
    rig.break_stream("b")
    rig.gone("a")
    rig.wait(10)
    assert rig.phase() is Phase.RENDEZVOUS, "b is lost, a waits"
    rig.hello("b", member(RUNNING, 1))
    rig.fail("b", reason="the host was lost", round_=1)
    rig.gone("b", round_=1)
    assert {place.restart_count for place in rig.placed().values()} == {1}


def test_hub_that_begins_again_while_a_round_is_stopped_keeps_the_ranks() -> None:
    before = Rig(make_spec(fewest=2, most=2))
    before.join("a", "b")
    between = Rig(before.state.plan.spec, record=before.records[-1])
    between.hello("a", epoch=9)
    record = between.records[-1]
    assert [each.node_id for each in record.members] == ["b"], "a came back without its workers"
    rig = Rig(before.state.plan.spec, record=record)
    rig.hello("b", member(RUNNING, 1), epoch=9)
    rig.gone("b", round_=1)
    rig.join("a")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"a": 0, "b": 1}


def test_hub_that_begins_again_between_two_rounds_keeps_the_ranks() -> None:
    before = Rig(make_spec(fewest=3, most=3, max_restarts=1))
    before.join("a", "b", "c")
    before.fail("c")
    before.silence("c")
    before.gone("a", "b")
    before.wait(2)
    record = before.records[-1]
    assert not record.members, "nobody runs anything"
    rig = Rig(before.state.plan.spec, record=record)
    rig.join("c", "b", "a")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"a": 0, "b": 1, "c": 2}


def test_hub_whose_record_lags_learns_of_the_newest_round_from_its_members() -> None:
    rig = Rig(make_spec(fewest=1, most=2), record=HubRecord(round=1, stopping=True))
    rig.hello("a", member(RUNNING, 2))
    assert [message.round for _, message in rig.take(StopRound)] == [2]
    rig.gone("a", round_=2)
    assert not rig.placed(), "others may run round 2 for a lease"
    rig.hello("b", member(RUNNING, 2))
    rig.wait(5.1)
    assert {node: place.round for node, place in rig.placed().items()} == {"a": 3}
    assert [message.round for _, message in rig.take(StopRound)] == [2], "b is told to stop"


def test_offer_of_one_that_knows_of_a_newer_round_is_given_no_number_twice() -> None:
    rig = Rig(make_spec(fewest=2, most=2), record=HubRecord(round=1))
    rig.join("a")
    rig.hello("b")
    rig.ready("b", round_=2)
    rig.wait(6)
    assert {place.round for place in rig.placed().values()} == {3}


def test_member_whose_place_went_to_its_last_session_and_that_offers_another_port_is_not_forgotten() -> None:
    rig = Rig(make_spec(fewest=2, most=2, max_restarts=1))
    rig.join("a", "b")
    rig.fail("b")
    rig.gone("a", "b")
    assert rig.state.round == 2, "a and its host end before they hear of that"
    rig.placed()
    rig.stopped()
    rig.hello("a", member(JOINING, 1))
    rig.gone("a", round_=1)
    assert rig.stopped() == ["b"]
    rig.gone("b", round_=2)
    assert rig.placed().keys() == {"a", "b"}


def test_answer_about_an_older_round_does_not_hide_the_one_that_runs() -> None:
    book = MemberBook()
    book.resume(member(RUNNING, 2))
    assert book.gone("default", 1, 5, "") == RoundGone(role="default", round=1, master_port=5)
    assert book.states() == (member(RUNNING, 2),)
    assert book.stop(StopRound(round=2, reason="b failed")) == ([], True), "its owner has to act"
