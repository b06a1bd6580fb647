"""On the hub's own node the run ends when the hub says so, not when the node's part of it is over."""

from __future__ import annotations

import pytest

from agentd.api.types import Command, GroupStatus, Phase, RoleSpec, RunSpec, WorkerState
from agentd.groups.snapshot import compose, own_part, without_hub

SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="x")),), nodes=("a", "b"))


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.STOPPED, Phase.LOST])
def test_a_part_that_ended_is_no_end_of_a_run_whose_hub_has_not_spoken_yet(phase: Phase) -> None:
    group = GroupStatus(role="default", phase=phase, worker_state=WorkerState.FAILED)
    own = own_part("a", "a:1", "a", (group,), "")
    silent = without_hub(SPEC, 7, "a:1", 5.0)
    assert compose(silent, own, None, hub_here=True).phase is Phase.STOPPING
    assert compose(silent, own, None, hub_here=False).phase is phase
