"""A run as a node shows it: the hub speaks for the whole, the node for its part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentd.api.types import (
    Command,
    GroupStatus,
    NodeStatus,
    Phase,
    RoleSpec,
    RunSpec,
    RunStatus,
    WorkerState,
)
from agentd.groups.snapshot import PartEnd, compose, own_part, part_end_of, without_hub

SPEC = RunSpec(
    run_id="job", roles=(RoleSpec(command=Command(entrypoint="x")),), nodes=("a", "b"), max_restarts=2
)
NO_HUB = without_hub(SPEC, 7, "h:1", 5.0)
HUB = RunStatus(
    run_id="job",
    incarnation=7,
    phase=Phase.RUNNING,
    nodes=(NodeStatus(node_id="a", name="a"), NodeStatus(node_id="b", name="b")),
    from_hub=True,
)


def group(phase: Phase, role: str = "default", reason: str = "") -> GroupStatus:
    return GroupStatus(role=role, phase=phase, worker_state=WorkerState.HEALTHY, reason=reason)


def own(*phases: Phase, problem: str = "") -> NodeStatus:
    groups = tuple(group(phase, f"r{index}") for index, phase in enumerate(phases))
    return own_part("b", "b:1", "b", groups, problem)


def test_before_the_hub_speaks_the_run_is_where_its_own_groups_are() -> None:
    status = compose(NO_HUB, own(Phase.PENDING, Phase.RENDEZVOUS), None, hub_here=False)
    assert (status.phase, status.min_members, status.max_restarts) == (Phase.PENDING, 2, 2)
    assert [node.node_id for node in status.nodes] == ["b"]


def test_own_groups_replace_what_the_hub_knows_of_them() -> None:
    status = compose(HUB, own(Phase.RUNNING), None, hub_here=False)
    assert [len(node.groups) for node in status.nodes] == [0, 1]
    assert status.phase is Phase.RUNNING
    assert not status.from_hub
    assert compose(HUB, own(Phase.RUNNING), None, hub_here=True).from_hub


@pytest.mark.parametrize("end", [Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED])
def test_the_end_is_shown_only_when_nothing_is_left_here(end: Phase) -> None:
    finished = replace(HUB, phase=end)
    assert compose(finished, own(Phase.STOPPING), None, hub_here=False).phase is Phase.STOPPING
    assert compose(finished, own(end), None, hub_here=False).phase is end
    assert compose(finished, own(), None, hub_here=True).phase is end


def test_a_part_that_left_is_over_though_the_run_goes_on() -> None:
    left = PartEnd(Phase.STOPPED, "left")
    assert compose(HUB, own(Phase.STOPPING), left, hub_here=False).phase is Phase.STOPPING
    status = compose(HUB, own(Phase.STOPPED), left, hub_here=False)
    assert (status.phase, status.reason) == (Phase.STOPPED, "left")


def test_the_hubs_node_shows_the_run_on_when_its_own_part_left() -> None:
    status = compose(HUB, own(Phase.STOPPED), PartEnd(Phase.STOPPED, "left"), hub_here=True)
    assert status.phase is Phase.RUNNING


def test_a_hub_that_does_not_answer_makes_the_node_detached() -> None:
    status = compose(HUB, own(Phase.RUNNING, problem="hub h:1 unreachable"), None, hub_here=False)
    assert (status.nodes[1].detached, status.nodes[1].reason) == (True, "hub h:1 unreachable")


def test_a_part_ends_by_itself_with_its_last_group() -> None:
    assert part_end_of([]) is None
    assert part_end_of([group(Phase.FAILED), group(Phase.RUNNING)]) is None
    ended = [group(Phase.STOPPED), group(Phase.FAILED, reason="no host")]
    assert part_end_of(ended) == PartEnd(Phase.FAILED, "no host")
