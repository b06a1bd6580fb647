"""Runs whose members are agents in processes of their own: they outlive their hub, and have no agentd."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentd.api.errors import InvalidSpec
from agentd.api.types import Command, Phase, RendezvousSpec, RoleSpec, RunSpec
from agentd.core.specs import differing_fields, validate
from agentd.hub.messages import MemberCondition, MemberState, StopRound
from agentd.hub.state import HubRecord
from tests.unit.hub.rig import Rig, make_spec


def external(fewest: int = 2, most: int = 2, max_restarts: int = 0) -> RunSpec:
    spec = make_spec(fewest=fewest, most=most, max_restarts=max_restarts)
    return replace(spec, external_agents=True, roles=(RoleSpec(command=Command(entrypoint="")),))


def a_round(spec: RunSpec) -> Rig:
    rig = Rig(spec)
    rig.join("a", "b")
    assert rig.phase() is Phase.RUNNING
    return rig


def begun_again(before: Rig) -> Rig:
    """The next hub of the same run, which has only the record."""
    return Rig(before.state.plan.spec, record=before.records[-1])


def told(condition: MemberCondition, round_: int = 1) -> MemberState:
    return MemberState(role="default", local_world_size=1, condition=condition, round=round_)


RUNNING, DONE = told(MemberCondition.RUNNING), told(MemberCondition.DONE)


def test_a_hub_that_begins_again_touches_no_worker() -> None:
    rig = begun_again(a_round(external()))
    assert rig.phase() is Phase.RUNNING
    rig.hello("a", RUNNING, epoch=2)
    rig.hello("b", RUNNING, epoch=2)
    rig.wait(60)
    assert not rig.stopped()
    assert (rig.phase(), rig.status.round, rig.status.membership_changes) == (Phase.RUNNING, 1, 0)
    rig.done("a", "b")
    assert rig.phase() is Phase.SUCCEEDED


def test_an_agent_that_never_comes_back_to_the_new_hub_is_lost() -> None:
    rig = begun_again(a_round(external(fewest=1)))
    rig.hello("a", RUNNING, epoch=2)
    rig.wait(rig.state.plan.return_window - 0.1)
    assert not rig.stopped()
    rig.wait(0.2)
    assert rig.stopped() == ["a"]
    rig.gone("a")
    rig.wait(1.1)
    assert rig.placed()["a"].group_world_size == 1
    assert rig.status.membership_changes == 1


def test_an_agent_whose_workers_succeeded_meanwhile_is_counted() -> None:
    rig = begun_again(a_round(external()))
    rig.hello("a", DONE, epoch=2)
    assert rig.phase() is Phase.RUNNING
    rig.hello("b", DONE, epoch=2)
    assert rig.phase() is Phase.SUCCEEDED


def test_an_agent_that_never_heard_of_its_place_gets_another() -> None:
    rig = begun_again(a_round(external()))
    rig.hello("a", RUNNING, epoch=2)
    rig.hello("b", told(MemberCondition.JOINING, 0), epoch=2)
    rig.ready("b")
    assert set(rig.stopped()) == {"a", "b"}
    rig.gone("a", "b")
    assert {place.round for place in rig.placed().values()} == {2}


def test_a_round_that_was_being_stopped_is_stopped_to_its_end_and_counted_once() -> None:
    before = a_round(external(max_restarts=1))
    before.fail("a")
    assert before.records[-1].stopping
    rig = begun_again(before)
    assert rig.phase() is Phase.RESTARTING
    for node in ("a", "b"):
        rig.hello(node, RUNNING, epoch=2)
    rig.fail("a")  # said again: the first hub never answered
    rig.gone("a", "b")
    assert {place.restart_count for place in rig.placed().values()} == {1}
    assert rig.phase() is Phase.RUNNING


def test_a_record_of_an_older_agentd_counts_as_running() -> None:
    assert not HubRecord(round=1).stopping


def test_an_agent_without_a_window_is_lost_with_its_stream() -> None:
    rig = Rig(external(fewest=1))
    for node in ("a", "b"):
        rig.hello(node, window=0.0)
        rig.ready(node)
    rig.break_stream("b")
    assert "a" in rig.stopped()
    assert {node.node_id: node.phase for node in rig.status.nodes}["b"] is Phase.LOST


def test_status_has_no_address_where_no_agentd_is_and_says_who_knows_the_workers() -> None:
    rig = a_round(external())
    rig.hello("hub")
    shown = {node.node_id: node for node in rig.status.nodes}
    assert set(shown) == {"a", "b"}, "the hub's own node has no part in the run"
    assert all(node.address == "" for node in shown.values())
    assert shown["a"].groups[0].reason == "1 worker, known to their own agent only"
    rig.leave("b")
    rig.gone("a", "b")
    rig.break_stream("b")
    assert {node.address for node in rig.status.nodes} == {""}


def test_master_addr_is_still_the_machine_of_rank_zero() -> None:
    rig = a_round(external())
    assert {place.master_addr for place in rig.placed().values()} == {"a.example"}


def test_the_last_stop_reaches_agents_as_it_does_nodes() -> None:
    rig = a_round(external())
    rig.terminate(3.0, "enough")
    assert {finished.stop_grace for finished in rig.finished().values()} == {3.0}
    assert not rig.take(StopRound)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (replace(external(), nodes=("a",)), "nodes"),
        (replace(external(), roles=(RoleSpec(command=Command(entrypoint="train.py")),)), "roles[default]"),
        (
            replace(external(), roles=(RoleSpec(command=Command(entrypoint=""), env={"A": "1"}),)),
            "roles[default]",
        ),
        (replace(external(), roles=(RoleSpec(role=".", command=Command(entrypoint="")),)), "roles.role"),
    ],
)
def test_what_agentd_would_need_to_start_workers_is_refused(spec: RunSpec, field: str) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        validate(spec)
    assert refusal.value.facts["field"] == field


def test_a_run_of_agents_is_valid_and_differs_from_one_of_nodes() -> None:
    validate(external())
    assert differing_fields(external(), replace(external(), external_agents=False)) == ("external_agents",)
    other = replace(external(), rendezvous=RendezvousSpec(min_members=1, max_members=2))
    assert differing_fields(external(), other) == ("rendezvous.min_members",)
