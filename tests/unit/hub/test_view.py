"""A run as people and programs read it."""

from __future__ import annotations

from agentd.api.types import Phase, WorkerState
from agentd.hub.view import COMPACT_LIMIT, compact
from tests.unit.hub.rig import Rig, make_spec


def test_each_group_is_shown_with_torchs_word_beside_its_phase() -> None:
    rig = Rig(make_spec(["a", "b", "c"], fewest=1, most=3, max_restarts=1))
    rig.join("a", "b", "c", size=2)
    rig.done("a")
    rig.silence("c")
    rig.gone("b")
    shown = {
        node.node_id: [(group.phase, group.worker_state, group.local_world_size) for group in node.groups]
        for node in rig.status.nodes
    }
    assert shown == {
        "a": [(Phase.RESTARTING, WorkerState.STOPPED, 2)],
        "b": [(Phase.RENDEZVOUS, WorkerState.INIT, 2)],
        "c": [],
    }
    lost = next(node for node in rig.status.nodes if node.node_id == "c")
    assert (lost.phase, lost.reason) == (Phase.LOST, "no heartbeat for 5 s")


def test_ended_run_shows_its_outcome_everywhere_and_misses_nobody() -> None:
    rig = Rig(make_spec(["a", "b"]))
    rig.join("a", "b")
    rig.done("a", "b")
    status = rig.status
    assert status.phase is Phase.SUCCEEDED
    assert status.missing == ()
    assert {node.phase for node in status.nodes} == {Phase.SUCCEEDED}
    assert [node.groups[0].group_rank for node in status.nodes] == [0, 1]
    assert status.reason == "all 2 members succeeded"


def test_a_run_of_one_member_says_so() -> None:
    rig = Rig(make_spec())
    rig.join("a")
    rig.done("a")
    assert rig.status.reason == "its only member succeeded"


def test_missing_members_of_two_roles_are_named_with_their_role() -> None:
    rig = Rig(make_spec(["a", "b"], roles=["trainer", "reader"]))
    rig.hello("a")
    rig.ready("a", "trainer")
    assert rig.status.missing == ("b/trainer", "a/reader", "b/reader")


def test_what_every_node_is_sent_has_a_bounded_size_whatever_the_run() -> None:
    names = [f"n{number}" for number in range(4 * COMPACT_LIMIT)]
    rig = Rig(make_spec(names))
    rig.join(*names[: 2 * COMPACT_LIMIT])
    view = compact(rig.status)
    assert len(rig.status.missing) == 2 * COMPACT_LIMIT
    assert len(view.missing) == COMPACT_LIMIT
    assert view.nodes == ()
    assert len(view.reason) < 1000


def test_small_run_is_sent_with_its_nodes_and_without_their_groups() -> None:
    rig = Rig(make_spec(["a", "b"]))
    rig.join("a", "b")
    view = compact(rig.status)
    assert [(node.node_id, node.phase, node.groups) for node in view.nodes] == [
        ("a", Phase.RUNNING, ()),
        ("b", Phase.RUNNING, ()),
    ]
