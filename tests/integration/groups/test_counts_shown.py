"""A group that runs again is never shown beside the count of restarts from before."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agentd.api.types import Phase
from tests.integration.groups.test_nodes import own_workers, run_on
from tests.support.noding import Neighbourhood, run_spec

pytestmark = pytest.mark.asyncio


async def test_no_snapshot_has_a_new_round_beside_old_counts(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("a") as a, near.node("b") as b:
        shown: list[tuple[int, int]] = []

        def look(run_id: str) -> None:
            for node in (a, b):
                status = node.registry.status(run_id)
                groups = [group for part in status.nodes for group in part.groups]
                shown.extend(
                    (group.round, status.restart_count) for group in groups if group.phase is Phase.RUNNING
                )

        await run_on(run_spec(nodes=("a", "b"), max_restarts=5), a, b)
        b.registry.on_change(look)
        for round_ in range(1, 4):
            (worker, *_) = own_workers(await b.runs("job", round_), "b")
            os.kill(worker.pid, signal.SIGKILL)
        await b.runs("job", 4)
    assert {round_ for round_, _ in shown} == {1, 2, 3, 4}
    assert [(round_, count) for round_, count in shown if count < round_ - 1] == []
