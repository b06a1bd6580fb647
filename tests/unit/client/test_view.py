"""One picture of a run from what its hub and its nodes tell."""

from __future__ import annotations

from dataclasses import replace

from agentd.api.types import Failure, GroupStatus, NodeStatus, Phase, RunStatus, WorkerState, WorkerStatus
from agentd_client.view import merge, with_silent_nodes


def worker(rank: int, pid: int) -> WorkerStatus:
    return WorkerStatus(
        role="default", rank=rank, local_rank=0, role_rank=rank, pid=pid, state=WorkerState.HEALTHY
    )


def node(name: str, *workers: WorkerStatus, round: int = 1, **changes: object) -> NodeStatus:
    group = GroupStatus(
        role="default", phase=Phase.RUNNING, worker_state=WorkerState.HEALTHY, workers=workers, round=round
    )
    made = NodeStatus(node_id=name, phase=Phase.RUNNING, groups=(group,))
    return replace(made, **changes)  # type: ignore[arg-type]


def status(*nodes: NodeStatus, incarnation: int = 5, **changes: object) -> RunStatus:
    made = RunStatus(run_id="r", incarnation=incarnation, phase=Phase.RUNNING, nodes=nodes)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_hub_tells_the_state_and_nodes_their_workers() -> None:
    hub = status(node("a"), node("b", detached=True, address="b:1"), from_hub=True, phase=Phase.RESTARTING)
    picture = merge(hub, [status(node("a", worker(0, 11))), status(node("b", worker(1, 12)))])
    assert picture.phase is Phase.RESTARTING
    assert [(n.node_id, n.groups[0].workers[0].pid) for n in picture.nodes] == [("a", 11), ("b", 12)]
    assert (picture.nodes[1].detached, picture.nodes[1].address) == (True, "b:1")


def test_without_the_hub_the_best_informed_node_stands_in() -> None:
    old, new = status(node("a"), round=1), status(node("b"), round=2, phase=Phase.STOPPING)
    picture = merge(None, [old, new])
    assert (picture.round, picture.phase) == (2, Phase.STOPPING)
    assert {n.node_id for n in picture.nodes} == {"a", "b"}


def test_without_the_hub_each_node_says_itself_whether_it_is_out_of_touch() -> None:
    a, b = node("a", worker(0, 11), detached=True), node("b", worker(1, 12), detached=True)
    picture = merge(None, [status(a, node("b")), status(node("a"), b)])
    assert [n.detached for n in picture.nodes] == [True, True]


def test_an_older_incarnation_does_not_count() -> None:
    old = status(node("a", worker(0, 1)), incarnation=4, from_hub=True, phase=Phase.FAILED)
    picture = merge(old, [status(node("b", worker(0, 2)))])
    assert (picture.incarnation, picture.phase) == (5, Phase.RUNNING)
    assert [n.node_id for n in picture.nodes] == ["b"]


def test_a_node_the_hub_has_given_up_keeps_its_own_story() -> None:
    hub = status(NodeStatus(node_id="b", phase=Phase.LOST, reason="silent for 5 s"), from_hub=True)
    assert merge(hub, []).nodes[0].reason == "silent for 5 s"
    alive = merge(hub, [status(node("b", worker(1, 12)))]).nodes[0]
    assert alive.groups[0].workers[0].pid == 12
    assert alive.reason == "silent for 5 s"


def test_two_agentds_of_one_node_id_are_two_nodes_and_each_keeps_its_story() -> None:
    one = replace(node("a", worker(0, 11)), name="one")
    two = replace(node("a"), name="two", phase=Phase.FAILED, reason="the id is taken")
    hub, mine, refused = status(one, from_hub=True), status(one), status(two)
    picture = merge(hub, [mine, refused])
    assert [(n.name, n.phase, n.reason) for n in picture.nodes] == [
        ("one", Phase.RUNNING, ""),
        ("two", Phase.FAILED, "the id is taken"),
    ]


def test_the_first_failure_is_the_hubs_else_the_earliest_told() -> None:
    early, late = Failure(rank=1, time=10), Failure(rank=2, time=20)
    told = [status(first_failure=late), status(first_failure=early)]
    assert merge(None, told).first_failure == early
    assert merge(status(from_hub=True, first_failure=late), told).first_failure == late


def test_a_node_that_does_not_answer_is_shown_as_hearsay_and_an_ended_one_as_it_ended() -> None:
    told = status(node("a"), node("b"), node("c", phase=Phase.LOST))
    shown = with_silent_nodes(told, {"b", "c"})
    assert [(n.node_id, n.detached, "does not answer" in n.reason) for n in shown.nodes] == [
        ("a", False, False),
        ("b", True, True),
        ("c", False, False),
    ]


def test_the_hub_counts_as_unreachable_only_while_no_node_has_it() -> None:
    cut, longer = status(hub_unreachable_since=200.0), status(hub_unreachable_since=100.0)
    assert merge(None, [cut, longer]).hub_unreachable_since == 100.0
    assert merge(None, [cut, status()]).hub_unreachable_since == 0.0
    assert merge(status(from_hub=True), [cut]).hub_unreachable_since == 0.0
