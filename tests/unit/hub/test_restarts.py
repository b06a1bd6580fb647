"""Failures, budgets, the two beats, and how a run ends (rules 2, 6, 7 and 8)."""

from __future__ import annotations

import pytest

from agentd.api.types import Phase
from agentd.hub.state import Beat
from tests.unit.hub.rig import Rig, make_spec


def running(*nodes: str, max_restarts: int = 1, most: int = 0) -> Rig:
    spec = make_spec(nodes, fewest=1 if most else 0, most=most, max_restarts=max_restarts)
    rig = Rig(spec)
    rig.join(*nodes)
    assert sorted(rig.placed()) == sorted(nodes)
    return rig


def test_no_worker_of_the_next_round_before_all_members_said_gone() -> None:
    rig = running("a", "b", "c")
    rig.fail("b")
    assert rig.stopped() == ["a", "b", "c"]
    rig.gone("b", "a")
    assert rig.placed() == {}
    assert rig.phase() is Phase.RESTARTING
    rig.gone("c")
    places = rig.placed()
    assert {place.round for place in places.values()} == {2}
    assert {place.restart_count for place in places.values()} == {1}


def test_survivors_keep_their_order() -> None:
    rig = running("a", "b", "c")
    rig.fail("a")
    rig.gone("c", "b", "a")
    places = rig.placed()
    assert [places[node].group_rank for node in "abc"] == [0, 1, 2]


def test_failures_of_one_round_count_once() -> None:
    rig = running("a", "b", max_restarts=2)
    rig.fail("a")
    rig.fail("b")
    rig.fail("a")
    rig.gone("a", "b")
    assert rig.status.restart_count == 1
    assert {place.restart_count for place in rig.placed().values()} == {1}


def test_failure_reported_for_an_older_round_changes_nothing() -> None:
    rig = running("a", "b", max_restarts=5)
    rig.fail("a")
    rig.gone("a", "b")
    before = rig.state
    rig.fail("b", round_=1)
    assert rig.state == before


def test_budget_used_up_fails_everyone_with_the_first_cause() -> None:
    rig = running("a", "b", max_restarts=0)
    rig.fail("b", rank=1)
    ends = rig.finished()
    assert sorted(ends) == ["a", "b"]
    assert {end.phase for end in ends.values()} == {Phase.FAILED}
    assert ends["a"].first_failure is not None
    assert ends["a"].first_failure.node_id == "b"
    assert "rank 1 (pid 11) on node b exited with code 3; restarts used: 0 of 0" in ends["a"].reason


def test_run_is_stopping_until_nobody_runs_and_failed_then() -> None:
    rig = running("a", "b", max_restarts=0)
    rig.fail("b")
    assert rig.phase() is Phase.STOPPING
    rig.gone("b")
    assert rig.phase() is Phase.STOPPING
    rig.gone("a")
    assert rig.phase() is Phase.FAILED


def test_end_of_a_stream_answers_for_a_node_when_the_run_ends() -> None:
    rig = running("a", "b")
    rig.terminate()
    rig.break_stream("a")
    rig.break_stream("b")
    assert rig.phase() is Phase.STOPPED


def test_end_does_not_wait_for_ever_for_a_node_that_never_answers() -> None:
    rig = running("a", "b")
    rig.terminate(grace=2.0)
    rig.gone("a")
    rig.wait(2.0 + 5.0 + 5.0 - 0.1)
    assert rig.phase() is Phase.STOPPING
    rig.wait(0.2)
    assert rig.phase() is Phase.STOPPED


@pytest.mark.parametrize(
    ("arrivals", "first"),
    [
        # (node, seconds after the first arrival, age)
        ([("a", 0.0, 0.0), ("b", 0.1, 0.05)], "a"),
        ([("a", 0.0, 0.0), ("b", 0.1, 0.3)], "b"),
        ([("a", 0.0, 0.5), ("b", 0.1, 0.3)], "a"),
        ([("a", 0.0, -5.0), ("b", 0.1, 0.2)], "b"),
    ],
)
@pytest.mark.parametrize("max_restarts", [0, 3])
def test_first_failure_is_the_smallest_arrival_less_age(
    arrivals: list[tuple[str, float, float]], first: str, max_restarts: int
) -> None:
    rig = running("a", "b", max_restarts=max_restarts)
    start = rig.now
    for node, at, age in arrivals:
        rig.now = start + at
        rig.fail(node, age=age)
    rig.gone("a", "b")
    failure = rig.status.first_failure
    assert failure is not None
    assert failure.node_id == first
    if not max_restarts:
        end = rig.finished()["a"]
        assert (end.first_failure, end.reason) == (failure, rig.status.reason)
        assert f"on node {first} exited" in end.reason
    assert rig.records[-1].first_failure == failure


def test_failure_after_a_membership_change_is_its_consequence_and_costs_nothing() -> None:
    rig = running("a", "b", max_restarts=0, most=3)
    rig.leave("b")
    rig.fail("a")
    rig.gone("a", "b")
    assert rig.phase() is Phase.RUNNING
    assert rig.status.restart_count == 0
    assert rig.status.membership_changes == 1
    assert rig.status.first_failure is None


@pytest.mark.parametrize("how", ["silent", "broken"])
def test_failure_caused_by_a_lost_peer_is_a_membership_change(how: str) -> None:
    rig = running("a", "b", max_restarts=0, most=3)
    if how == "broken":
        rig.break_stream("b")
    rig.fail("a", overdue=["b"] if how == "silent" else ())
    assert rig.finished() == {}
    rig.gone("a")
    if how == "silent":
        rig.silence("b")
    rig.wait(6.1)
    assert rig.phase() is Phase.RUNNING
    assert rig.status.restart_count == 0
    assert rig.status.membership_changes == 1


def test_failure_beside_a_node_that_was_only_slow_counts() -> None:
    rig = running("a", "b", max_restarts=0, most=3)
    rig.fail("a", overdue=["b"])
    rig.gone("a", "b")
    assert rig.phase() is Phase.FAILED


def test_all_members_done_is_success_and_nobody_waits_longer() -> None:
    rig = running("a", "b")
    rig.done("a")
    assert rig.phase() is Phase.RUNNING
    assert rig.status.nodes[0].phase is Phase.DONE
    rig.done("b")
    assert rig.phase() is Phase.SUCCEEDED
    assert {end.phase for end in rig.finished().values()} == {Phase.SUCCEEDED}


def test_done_member_is_hosted_again_only_when_the_run_restarts() -> None:
    rig = running("a", "b")
    rig.done("a")
    assert rig.stopped() == []
    rig.fail("b")
    assert sorted(rig.stopped()) == ["a", "b"]
    rig.gone("b")
    assert rig.placed() == {}
    rig.gone("a")
    assert sorted(rig.placed()) == ["a", "b"]


@pytest.mark.parametrize("how", ["leave", "silence", "break_stream"])
def test_done_member_that_goes_changes_nothing(how: str) -> None:
    rig = running("a", "b", most=3)
    rig.done("a")
    getattr(rig, how)("a")
    rig.wait(10)
    assert rig.stopped() == []
    rig.done("b")
    assert rig.phase() is Phase.SUCCEEDED


def test_done_member_that_went_is_not_asked_when_a_restart_comes() -> None:
    rig = running("a", "b", most=3)
    rig.done("a")
    rig.silence("a")
    rig.fail("b")
    assert rig.stopped() == ["b"]
    rig.gone("b")
    assert {node: place.world_size for node, place in rig.placed().items()} == {"b": 1}


def test_member_that_cannot_be_made_to_stop_is_left_out_as_lost() -> None:
    rig = running("a", "b", "c", most=3)
    rig.fail("a")
    rig.gone("a", "b")
    rig.gone("c", unkillable="pid 77 in nfs_wait")
    assert sorted(rig.placed()) == ["a", "b"]
    status = next(node for node in rig.status.nodes if node.node_id == "c")
    assert status.phase is Phase.LOST
    assert status.reason == "pid 77 in nfs_wait"


def test_member_that_heartbeats_but_does_not_answer_is_lost_after_a_bounded_time() -> None:
    rig = running("a", "b", "c", most=3)
    rig.fail("a")
    rig.gone("a", "b")
    rig.wait(30 + 5 + 5 - 0.1)
    assert rig.placed() == {}
    rig.wait(0.2)
    assert sorted(rig.placed()) == ["a", "b"]
    assert rig.stopped() == ["a", "b", "c"]
    rig.gone("c", round_=1)
    assert rig.stopped() == ["a", "b"], "it is back, and there is room for it"


def test_only_gone_answers_for_a_member_whose_workers_run() -> None:
    rig = running("a", "b")
    rig.fail("a")
    rig.gone("a")
    rig.ready("b", round_=0)
    rig.gone("b", round_=99)
    rig.done("b")
    assert rig.placed() == {}
    rig.gone("b")
    assert sorted(rig.placed()) == ["a", "b"]


def test_end_does_not_wait_for_a_node_that_has_no_stream() -> None:
    rig = running("a", "b")
    rig.break_stream("b")
    rig.terminate()
    rig.gone("a")
    assert rig.phase() is Phase.STOPPED


def test_lost_host_of_a_running_member_is_a_counted_failure() -> None:
    rig = running("a", "b", max_restarts=1)
    rig.fail("b", reason="the host was lost: killed by SIGKILL")
    rig.gone("a", "b")
    assert rig.status.restart_count == 1
    failure = rig.status.first_failure
    assert failure is not None
    assert failure.message == "the host was lost: killed by SIGKILL"


def test_group_that_cannot_start_uses_the_budget_and_then_fails_the_run() -> None:
    rig = Rig(make_spec(["a", "b"], max_restarts=1))
    rig.join("a")
    rig.fail("a", reason="no host", round_=0)
    rig.fail("a", reason="no host", round_=0)
    assert rig.status.restart_count == 1
    assert rig.phase() is Phase.RENDEZVOUS
    rig.join("a", "b")
    assert {place.restart_count for place in rig.placed().values()} == {1}


def test_group_that_cannot_start_without_budget_fails_the_run() -> None:
    rig = Rig(make_spec(["a", "b"]))
    rig.join("a")
    rig.fail("a", reason="no host", round_=0)
    assert rig.phase() is Phase.FAILED
    assert "default on node a failed: no host" in rig.finished()["a"].reason


@pytest.mark.parametrize("stage", ["forming", "running", "restarting"])
def test_terminate_ends_the_run_everywhere_with_its_grace(stage: str) -> None:
    rig = running("a", "b") if stage != "forming" else Rig(make_spec(["a", "b", "c"]))
    if stage == "forming":
        rig.join("a", "b")
    if stage == "restarting":
        rig.fail("a")
    rig.terminate(grace=3.5, reason="enough")
    ends = rig.finished()
    assert {(end.phase, end.stop_grace, end.reason) for end in ends.values()} == {
        (Phase.STOPPED, 3.5, "enough")
    }
    assert sorted(ends) == ["a", "b"]
    rig.gone("a", "b")
    assert rig.phase() is Phase.STOPPED


def test_second_terminate_may_shorten_the_grace_and_never_lengthens_it() -> None:
    rig = running("a")
    rig.terminate(grace=20)
    rig.finished()
    rig.terminate(grace=60)
    assert rig.finished() == {}
    rig.terminate(grace=0)
    assert rig.finished()["a"].stop_grace == 0


def test_late_member_of_an_ended_run_is_told_that_it_is_over() -> None:
    rig = running("a", "b", max_restarts=0)
    rig.fail("a")
    rig.gone("a", "b")
    rig.finished()
    rig.hello("c")
    rig.ready("c")
    assert rig.finished()["c"].phase is Phase.FAILED
    assert rig.placed() == {}
    assert rig.state.beat is Beat.ENDED


def test_outcome_is_journalled_before_it_is_told() -> None:
    rig = running("a")
    rig.log.clear()
    rig.done("a")
    assert [type(effect).__name__ for effect in rig.log] == ["Journal", "Send", "Journal", "Ended", "Publish"]
    assert rig.records[-1].outcome is Phase.SUCCEEDED
