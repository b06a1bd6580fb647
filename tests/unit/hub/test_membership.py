"""Members come, leave, are lost and return (rules 3, 4, 5 and 9)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentd.api.errors import InvalidSpec, NodeIdTaken, StaleSession
from agentd.api.types import Phase
from agentd.core import defaults
from agentd.core.moments import utc
from agentd.hub.core import begin
from agentd.hub.messages import (
    MemberCondition,
    MemberReady,
    MemberState,
    MemberWaiting,
    RoundGone,
    SessionWelcome,
    StopRound,
)
from agentd.hub.state import Beat, HubRecord, NodeSilent, Received, StreamEnded
from tests.unit.hub.rig import Rig, make_spec


def elastic(
    *nodes: str, fewest: int = 1, most: int = 4, max_restarts: int = 0, changes: int | None = None
) -> Rig:
    spec = make_spec(
        nodes, fewest=fewest, most=most, max_restarts=max_restarts, max_membership_changes=changes
    )
    rig = Rig(spec)
    rig.join(*nodes)
    assert sorted(rig.placed()) == sorted(nodes)
    return rig


def member(condition: MemberCondition, round_: int, role: str = "default") -> MemberState:
    return MemberState(role=role, local_world_size=1, condition=condition, round=round_)


RUNNING, DONE, JOINING = MemberCondition.RUNNING, MemberCondition.DONE, MemberCondition.JOINING


def test_newcomer_grows_the_round_and_costs_no_restart() -> None:
    rig = elastic("a", "b")
    rig.join("c")
    assert rig.stopped() == ["a", "b"]
    rig.gone("b", "a")
    places = rig.placed()
    assert {node: place.group_rank for node, place in places.items()} == {"a": 0, "b": 1, "c": 2}
    assert rig.status.restart_count == 0
    assert rig.status.membership_changes == 1


def test_newcomers_go_behind_survivors_whatever_the_list_says() -> None:
    rig = Rig(make_spec(["new", "a", "b"], fewest=2, most=3))
    rig.join("a", "b")
    rig.wait(5)
    rig.join("new")
    rig.gone("a", "b")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"new": 2} | {"a": 0, "b": 1}


def test_newcomer_does_not_disturb_a_round_that_is_nearly_done() -> None:
    rig = elastic("a", "b")
    rig.done("a")
    rig.join("c")
    assert rig.stopped() == []
    assert "done already" in rig.take(MemberWaiting)[0][1].reason


def test_leaving_member_shrinks_the_round_once_its_workers_are_gone() -> None:
    rig = elastic("a", "b", "c")
    rig.leave("b")
    assert rig.stopped() == ["a", "b", "c"]
    rig.gone("a", "c")
    assert rig.placed() == {}, "workers of the leaving member still run"
    rig.gone("b")
    places = rig.placed()
    assert {node: place.group_rank for node, place in places.items()} == {"a": 0, "c": 1}
    assert {place.world_size for place in places.values()} == {2}


def test_member_that_was_taken_out_is_not_missing_and_a_lost_one_is() -> None:
    rig = Rig(make_spec(["a", "b", "c"], fewest=1, most=3))
    rig.join("a", "b", "c")
    rig.leave("b")
    rig.gone("a", "b", "c")
    rig.break_stream("b")
    assert rig.status.phase is Phase.RUNNING
    assert not rig.status.missing
    rig.silence("c")
    rig.gone("a")
    assert list(rig.status.missing) == ["c"]


def test_member_that_left_is_not_missing_while_its_node_stays_as_the_hub() -> None:
    rig = Rig(make_spec(["a", "b"], fewest=1, most=2))
    rig.join("a", "b")
    rig.leave("a")
    rig.gone("a", "b")
    assert list(rig.status.missing) == []
    rig.hello("a")
    assert list(rig.status.missing) == []
    rig.join("a")
    rig.silence("a")
    rig.gone("b")
    assert list(rig.status.missing) == ["a"]


def test_hub_that_began_again_knows_who_left() -> None:
    spec = make_spec(["a", "b"], fewest=1, most=2)
    rig = Rig(spec)
    rig.join("a", "b")
    rig.leave("a")
    rig.gone("a", "b")
    again = Rig(spec, record=rig.records[-1])
    again.hello("b", member(MemberCondition.RUNNING, 2))
    assert again.status.phase is Phase.RUNNING
    assert list(again.status.missing) == []


def test_last_call_does_not_wait_for_who_left_before_the_hub_began_again() -> None:
    spec = make_spec(["a", "b"], fewest=1, most=2)
    rig = Rig(spec)
    rig.join("a", "b")
    rig.leave("a")
    again = Rig(spec, record=rig.records[-1])
    again.hello("a")
    again.wait(6.0)
    again.join("b")
    assert sorted(again.placed()) == ["b"]


def test_a_round_below_its_fewest_says_who_left_and_keeps_it_over_the_hubs_death() -> None:
    spec = make_spec(["a", "b", "c"])
    rig = Rig(spec)
    rig.join("a", "b")
    rig.leave("b")
    assert rig.status.reason == "1 of 3 members joined; missing: c; left: b"
    again = Rig(spec, record=rig.records[-1])
    assert list(again.status.missing) == ["a", "c"]
    again.join("b")
    assert list(again.status.missing) == ["a", "c"]
    again.silence("b")
    assert list(again.status.missing) == ["a", "b", "c"]


def test_nobody_is_missing_while_others_fill_the_round() -> None:
    rig = Rig(make_spec(["a", "b"], fewest=2, most=2))
    rig.join("a", "b")
    rig.join("c")
    rig.silence("b")
    rig.gone("a")
    rig.wait(1.1)
    assert rig.status.phase is Phase.RUNNING
    assert list(rig.status.missing) == []


def test_leaving_member_that_said_gone_and_closes_its_stream_is_waited_for_no_more() -> None:
    rig = elastic("a", "b")
    rig.leave("b")
    rig.gone("b")
    rig.break_stream("b")
    rig.gone("a")
    assert sorted(rig.placed()) == ["a"]


def test_rank_0_moves_only_when_its_node_goes() -> None:
    rig = elastic("a", "b", "c")
    rig.leave("a")
    rig.gone("a", "b", "c")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"b": 0, "c": 1}
    rig.join("a")
    rig.gone("b", "c")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"b": 0, "c": 1, "a": 2}


def test_spare_steps_in_for_a_lost_member() -> None:
    rig = Rig(make_spec(fewest=2, most=2))
    rig.join("a", "b", "spare")
    rig.placed()
    rig.silence("a")
    rig.gone("b")
    rig.wait(1.1)
    places = rig.placed()
    assert {node: place.group_rank for node, place in places.items()} == {"b": 0, "spare": 1}
    assert ("a", 1) in rig.closed


def test_silent_spare_or_newcomer_holds_up_nobody() -> None:
    rig = Rig(make_spec(fewest=2, most=2))
    rig.join("a", "b", "spare")
    rig.placed()
    rig.silence("spare")
    assert rig.stopped() == []
    assert rig.phase() is Phase.RUNNING


def test_losses_within_one_heartbeat_are_one_change() -> None:
    rig = elastic("a", "b", "c", "d")
    rig.silence("d")
    rig.gone("a", "b")
    rig.wait(0.8)
    assert rig.placed() == {}
    rig.silence("c")
    rig.wait(0.3)
    assert sorted(rig.placed()) == ["a", "b"]
    assert rig.status.membership_changes == 1


def test_below_min_workers_stop_at_once_and_the_run_waits_for_members() -> None:
    rig = elastic("a", "b", fewest=2, most=3)
    rig.silence("b")
    assert rig.stopped() == ["a"]
    rig.gone("a")
    rig.wait(500)
    assert rig.phase() is Phase.RENDEZVOUS
    assert list(rig.status.missing) == ["b"]
    rig.join("b")
    assert {node: place.round for node, place in rig.placed().items()} == {"a": 2, "b": 2}


def test_below_min_for_too_long_fails_naming_the_missing() -> None:
    rig = elastic("a", "b", fewest=2, most=2)
    rig.silence("b")
    rig.gone("a")
    rig.wait(602)
    assert rig.phase() is Phase.FAILED
    assert "missing: b" in rig.finished()["a"].reason


def test_membership_changes_have_a_budget_of_their_own() -> None:
    rig = elastic("a", "b", "c", changes=1)
    rig.leave("c")
    rig.gone("a", "b", "c")
    rig.join("d")
    assert rig.stopped() == ["a", "b", "c"]
    assert "1 membership changes are used up" in rig.take(MemberWaiting)[0][1].reason
    rig.silence("b")
    assert "membership changes used: 1 of 1" in rig.finished()["a"].reason
    rig.gone("a")
    assert rig.phase() is Phase.FAILED


# --- streams that break ---------------------------------------------------------------------------------


def test_broken_stream_disturbs_nothing_when_the_node_comes_back_in_time() -> None:
    rig = elastic("a", "b")
    rig.break_stream("b")
    (b,) = [node for node in rig.status.nodes if node.node_id == "b"]
    assert b.detached
    assert b.reason.startswith(f"out of touch; it keeps its place until {utc(rig.now + 5)}. See that")
    rig.wait(4.9)
    rig.hello("b", member(RUNNING, 1))
    rig.wait(100)
    assert rig.stopped() == []
    assert rig.status.round == 1
    assert not any(node.detached for node in rig.status.nodes)


def test_node_that_does_not_come_back_within_its_window_is_lost() -> None:
    rig = elastic("a", "b")
    rig.break_stream("b")
    rig.wait(5.1)
    assert rig.stopped() == ["a"]
    assert "node b is lost" in rig.status.reason


def test_longer_window_is_cut_to_a_lease_when_a_new_round_is_due() -> None:
    rig = Rig(make_spec(fewest=1, most=3, max_restarts=1))
    for node in "abc":
        rig.hello(node, window=60.0)
        rig.ready(node)
    rig.placed()
    rig.break_stream("c")
    rig.wait(30)
    assert rig.phase() is Phase.RUNNING
    rig.fail("a")
    rig.gone("a", "b")
    rig.wait(4.9)
    assert rig.placed() == {}
    rig.wait(1.2)
    assert sorted(rig.placed()) == ["a", "b"]


def test_node_that_comes_back_while_the_round_stops_is_told_again_and_waited_for() -> None:
    rig = elastic("a", "b", max_restarts=1)
    rig.break_stream("b")
    rig.fail("a")
    rig.gone("a")
    rig.stopped()
    rig.hello("b", member(RUNNING, 1))
    assert rig.stopped() == ["b"]
    rig.gone("b")
    assert sorted(rig.placed()) == ["a", "b"]


def test_stopped_member_whose_stream_breaks_keeps_its_place_for_a_lease() -> None:
    rig = elastic("a", "b", "c", max_restarts=1)
    rig.fail("a")
    rig.gone("b")
    rig.break_stream("b")
    rig.gone("a", "c")
    assert rig.placed() == {}
    rig.hello("b", member(JOINING, 1))
    rig.gone("b")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"a": 0, "b": 1, "c": 2}


def test_assignment_lost_with_its_stream_is_sent_again() -> None:
    rig = Rig(make_spec(["a", "b"]))
    rig.hello("a")
    rig.hello("b")
    rig.ready("a", port=4001)
    rig.ready("b", port=4002)
    first = rig.placed()["b"]
    rig.break_stream("b")
    rig.hello("b", member(JOINING, 0))
    rig.ready("b", port=4002, round_=0)
    assert rig.placed() == {"b": first}
    assert rig.phase() is Phase.RUNNING


def test_assignment_of_a_later_round_lost_with_its_stream_is_sent_again() -> None:
    rig = elastic("a", "b", max_restarts=1)
    rig.fail("a")
    rig.gone("a")
    rig.say("b", RoundGone(role="default", round=1, master_port=4002))
    second = rig.placed()["b"]
    rig.break_stream("b")
    rig.hello("b", member(JOINING, 1))
    rig.say("b", RoundGone(role="default", round=1, master_port=4002))
    assert rig.placed() == {"b": second}


def test_member_that_lost_its_workers_without_a_word_is_placed_anew() -> None:
    rig = elastic("a", "b")
    rig.break_stream("b")
    rig.hello("b")
    assert rig.stopped() == ["a"]
    rig.ready("b")
    rig.gone("a")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"a": 0, "b": 1}


def test_success_that_was_not_heard_counts_when_the_node_comes_back() -> None:
    rig = elastic("a", "b")
    rig.done("a")
    rig.break_stream("b")
    rig.hello("b", member(DONE, 1))
    assert rig.phase() is Phase.SUCCEEDED


def test_lost_node_must_stop_its_old_workers_before_it_takes_part_again() -> None:
    rig = elastic("a", "b")
    rig.silence("b")
    rig.gone("a")
    rig.wait(1.1)
    assert sorted(rig.placed()) == ["a"]
    rig.stopped()
    rig.hello("b", member(RUNNING, 1))
    assert rig.stopped() == ["b"]
    assert rig.phase() is Phase.RUNNING
    rig.gone("b", round_=1)
    assert rig.stopped() == ["a"]
    rig.gone("a")
    assert sorted(rig.placed()) == ["a", "b"]


def test_lost_node_stays_out_when_the_run_does_not_let_it_rejoin() -> None:
    rig = Rig(make_spec(["a", "b"], fewest=1, most=2, no_rejoin=True))
    rig.join("a", "b")
    rig.placed()
    rig.silence("b")
    rig.gone("a")
    rig.wait(1.1)
    rig.placed()
    rig.hello("b", member(RUNNING, 1))
    end = rig.finished()["b"]
    assert end.phase is Phase.LOST
    assert "no_rejoin" in end.reason
    rig.ready("b")
    rig.wait(100)
    assert rig.status.round == 2


# --- who speaks -------------------------------------------------------------------------------------------


def test_welcome_carries_the_spec_and_the_times() -> None:
    rig = Rig(make_spec(["a"]))
    rig.hello("a")
    [(_, welcome)] = rig.take(SessionWelcome)
    assert (welcome.hub_node_id, welcome.heartbeat, welcome.lease) == ("hub", 1.0, 5.0)
    assert welcome.spec == rig.state.plan.spec


def test_second_agentd_under_a_live_node_id_is_refused_naming_both_addresses() -> None:
    rig = Rig(make_spec(["a"]))
    rig.hello("a")
    with pytest.raises(NodeIdTaken) as caught:
        rig.hello("a", uid="another", epoch=99)
    assert caught.value.facts["other_address"] == "a.example:7460"


def test_the_node_id_of_one_that_may_come_back_is_held_for_it_as_long_as_it_may() -> None:
    rig = elastic("a", "b")
    rig.break_stream("b")
    rig.now += 2
    with pytest.raises(NodeIdTaken) as caught:
        rig.hello("b", uid="another", epoch=1)
    assert "held for the agentd that was at b.example:7460: it is free in 3 s" in str(caught.value)
    assert caught.value.facts["held_s"] == "3"


def test_a_second_library_agent_under_a_live_node_id_is_told_its_option_and_no_port() -> None:
    taken = NodeIdTaken("a", "127.0.0.1:0", "[fd00::1]:0")
    assert str(taken) == (
        "node id 'a' of 127.0.0.1 is taken by a live agent at [fd00::1]. "
        "Give one of them another rendezvous option node_id."
    )
    assert "live agentd at b:1. Start one of them with another --node-id." in str(
        NodeIdTaken("a", "b:2", "b:1")
    )


def test_new_agentd_may_have_the_node_id_of_one_that_is_gone() -> None:
    rig = elastic("a", "b")
    rig.silence("b")
    rig.hello("b", uid="another", epoch=1)
    assert rig.state.nodes["b"].agent_uid == "another"


@pytest.mark.parametrize("gone", [False, True])
def test_session_with_an_older_or_equal_epoch_is_refused(gone: bool) -> None:
    rig = elastic("a")
    rig.hello("b", epoch=10)
    if gone:
        rig.break_stream("b")
    for epoch in (10, 9):
        with pytest.raises(StaleSession):
            rig.hello("b", epoch=epoch)
    rig.hello("b", epoch=11)


def test_words_of_a_replaced_session_change_nothing() -> None:
    rig = Rig(make_spec(["a", "b"]))
    rig.hello("a")
    rig.hello("b", epoch=1)
    rig.hello("b", epoch=2)
    before = rig.state
    old = MemberReady(role="default", local_world_size=1, master_port=1, round=0)
    rig.post(Received("b", 1, old))
    assert rig.state == before


def test_a_stream_that_ended_by_a_pause_of_the_hub_leaves_its_node_a_lease_to_come_back() -> None:
    rig = elastic("a", "b")
    rig.hello("b", member(RUNNING, 1), window=0.0)
    rig.post(StreamEnded("b", rig.epoch("b"), own_fault=True))
    assert (rig.state.beat, set(rig.state.detached)) == (Beat.RUNNING, {"b"})
    rig.hello("b", member(RUNNING, 1), window=0.0)
    assert (rig.state.beat, rig.state.round, dict(rig.state.detached)) == (Beat.RUNNING, 1, {})


@pytest.mark.parametrize(
    ("silence", "own_fault", "left"),
    [(1.0, False, 60.0), (4.0, False, 1.0), (5.1, False, None), (4.0, True, 60.0)],
)
def test_a_stream_that_ended_after_a_silence_leaves_its_node_the_rest_of_its_lease(
    silence: float, own_fault: bool, left: float | None
) -> None:
    rig = elastic("a", "b")
    rig.hello("b", member(RUNNING, 1), window=60.0)
    now = rig.now
    rig.post(StreamEnded("b", rig.epoch("b"), own_fault=own_fault, silence=silence))
    if left is None:
        assert "b" in rig.state.absent
    else:
        assert rig.state.detached["b"] == pytest.approx(now + left)


def test_end_of_a_replaced_stream_changes_nothing() -> None:
    rig = elastic("a", "b")
    old = rig.epoch("b")
    rig.hello("b", member(RUNNING, 1))
    before = rig.state
    rig.post(StreamEnded("b", old))
    rig.post(NodeSilent("b", old))
    assert rig.state == before


def test_hello_with_a_role_the_run_lacks_is_refused() -> None:
    rig = Rig(make_spec(["a"]))
    with pytest.raises(InvalidSpec):
        rig.hello("a", member(RUNNING, 1, role="other"))


def test_hub_goes_on_from_its_record_with_numbers_that_only_grow() -> None:
    rig = Rig(make_spec(["a"], max_restarts=3), record=HubRecord(round=6, restart_count=2))
    rig.join("a")
    place = rig.placed()["a"]
    assert (place.round, place.restart_count) == (7, 2)


def _begun_again(*, stopping: bool = False) -> Rig:
    """The hub of a round of a and b, with its record alone. One node would be enough for a round."""
    before = Rig(make_spec(["a", "b"], fewest=1, most=2))
    before.join("a", "b")
    return Rig(before.state.plan.spec, record=replace(before.records[-1], stopping=stopping))


def test_a_hub_that_began_again_forms_no_round_beside_a_node_that_still_runs_the_last() -> None:
    rig = _begun_again(stopping=True)
    rig.hello("a", member(JOINING, 0))
    rig.ready("a")
    rig.gone("a")
    rig.hello("b", member(RUNNING, 1))
    assert dict(rig.take(StopRound))["b"].round == 1
    rig.wait(30.0)
    assert rig.placed() == {}
    rig.gone("b")
    assert [(place.round, place.group_rank) for place in rig.placed().values()] == [(2, 0), (2, 1)]


def test_a_hub_that_began_again_goes_on_without_a_node_that_does_not_return() -> None:
    rig = _begun_again(stopping=True)
    rig.hello("b", member(JOINING, 0))
    rig.gone("b")
    rig.wait(rig.state.plan.return_window - 0.1)
    assert rig.placed() == {}
    rig.wait(1.2)
    rig.wait(5.0)
    assert sorted(rig.placed()) == ["b"]


def test_a_hub_that_began_again_stops_no_worker_and_waits_the_whole_window() -> None:
    rig = _begun_again()
    assert rig.phase() is Phase.RUNNING
    rig.hello("a", member(RUNNING, 1), epoch=2)
    rig.wait(defaults.REATTACH_WINDOW - 0.1)
    assert not rig.stopped()
    rig.hello("b", member(RUNNING, 1), epoch=2)
    rig.wait(600)
    assert not rig.stopped()
    rig.done("a", "b")
    assert rig.phase() is Phase.SUCCEEDED


def test_a_node_that_outstays_its_window_is_lost_to_a_hub_that_began_again() -> None:
    rig = _begun_again()
    rig.hello("a", member(RUNNING, 1), epoch=2)
    rig.wait(defaults.REATTACH_WINDOW + 0.1)
    assert rig.stopped() == ["a"]


def test_a_place_that_the_last_hub_could_not_tell_is_told_by_the_next() -> None:
    before = Rig(make_spec(["a", "b"]))
    before.join("a", "b")
    given = before.placed()
    rig = Rig(before.state.plan.spec, record=before.records[-1])
    rig.hello("a", member(RUNNING, 1), epoch=2)
    rig.hello("b", member(JOINING, 0), epoch=2)
    rig.ready("b", port=before.records[-1].members[1].master_port, round_=0)
    assert rig.placed() == {"b": given["b"]}
    assert not rig.stopped()


def test_a_group_that_lost_its_host_while_the_hub_was_away_starts_another_round() -> None:
    rig = _begun_again()
    rig.hello("a", member(RUNNING, 1), epoch=2)
    rig.hello("b", epoch=2)
    assert rig.stopped() == ["a"]
    assert rig.status.membership_changes == 1


def test_a_run_that_was_ending_ends_when_its_members_have_answered_the_next_hub() -> None:
    before = Rig(make_spec(["a", "b"]))
    before.join("a", "b")
    before.terminate(2.5, "enough")
    rig = Rig(before.state.plan.spec, record=before.records[-1])
    rig.hello("a", member(RUNNING, 1), epoch=2)
    told = rig.finished()["a"]
    assert (told.phase, told.reason, told.stop_grace) == (Phase.STOPPED, "enough", 2.5)
    rig.gone("a")
    assert rig.phase() is Phase.STOPPING
    rig.hello("b", member(RUNNING, 1), epoch=2)
    rig.gone("b")
    assert rig.phase() is Phase.STOPPED


def test_a_run_that_was_ending_waits_for_nobody_who_does_not_come_back() -> None:
    before = Rig(make_spec(["a", "b"]))
    before.join("a", "b")
    before.terminate(2.5)
    rig = Rig(before.state.plan.spec, record=before.records[-1])
    rig.wait(2.5 + rig.state.plan.answer_limit + 0.1)
    assert rig.phase() is Phase.STOPPED


def test_a_place_that_an_older_hub_did_not_write_down_costs_another_round() -> None:
    before = Rig(make_spec(["a", "b"]))
    before.join("a", "b")
    record = before.records[-1]
    members = tuple(replace(each, master_port=0) for each in record.members)
    rig = Rig(before.state.plan.spec, record=replace(record, members=members))
    rig.hello("a", member(RUNNING, 1), epoch=2)
    assert not rig.stopped()
    rig.hello("b", member(JOINING, 0), epoch=2)
    rig.ready("b")
    assert set(rig.stopped()) == {"a", "b"}


def test_record_with_an_outcome_is_a_tombstone() -> None:
    record = HubRecord(round=6, outcome=Phase.STOPPED, reason="asked to")
    rig = Rig(make_spec(["a"]), record=record)
    rig.join("a")
    assert rig.finished()["a"].reason == "asked to"
    assert begin(rig.state.plan, 0.0, record).outcome is Phase.STOPPED
