"""A fault of agentd's own in a group's life ends that group visibly, at once, and nobody else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from agentd.api.types import Phase, RendezvousSpec, StopRequest
from agentd.core import group_events as ev
from agentd.core.group import GroupState, Step, step
from agentd.groups import supervisor
from agentd.procs import tree
from tests.integration.groups.test_nodes import nodes, own_workers, run_on
from tests.support.fleet import is_gone
from tests.support.noding import run_spec

pytestmark = pytest.mark.asyncio

SPEC = run_spec(
    nodes=("a", "b"),
    max_restarts=3,
    stop_grace=30.0,
    rendezvous=RendezvousSpec(min_members=1, max_members=2, lease=30.0),
)
SOON_S = 15.0
"""Less than the lease, after which a hub waits for nobody who has gone, and the grace."""


async def test_the_others_go_on_at_once_without_a_group_whose_supervisor_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "a", "b") as (_, (a, b)):
        await run_on(SPEC, a, b)
        await a.runs("job")
        before = own_workers(await b.runs("job"), "b")
        victim = b.registry.live((SPEC.run_id, b.registry.status("job").incarnation))
        assert victim is not None

        def faulty(state: GroupState, event: ev.GroupEvent, now: float) -> Step:
            if isinstance(event, ev.MadeSpare):
                raise RuntimeError("a fault")
            return step(state, event, now)

        monkeypatch.setattr(supervisor, "step", faulty)
        began = time.monotonic()
        victim.on_waiting("default", "nobody says that to a running group")
        await a.runs("job", 2)
        assert time.monotonic() - began < SOON_S
        assert (await b.ends("job")).reason == "agentd failed: a fault"
        assert all(is_gone(worker.pid) for worker in before)
        await a.registry.stop(StopRequest(run_id="job", grace=0.0))
        assert (await a.ends("job")).phase is Phase.STOPPED


async def test_a_sweep_that_fails_ends_its_group_and_not_the_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "a", "b") as (_, (a, b)):
        await run_on(SPEC, a, b)
        await a.runs("job")
        await b.runs("job")
        victim = b.registry.live((SPEC.run_id, b.registry.status("job").incarnation))
        assert victim is not None
        sweep, failed = tree.end_group, list[bool]()

        def once(*marks: Any, **how: Any) -> Any:
            if not failed:
                failed.append(True)
                raise OSError("a fault")
            return sweep(*marks, **how)

        monkeypatch.setattr(tree, "end_group", once)
        victim.kill_hosts()
        assert (await b.ends("job")).reason == "agentd failed: a fault"
        await a.runs("job", 2)
        await a.registry.stop(StopRequest(run_id="job", grace=0.0))
        assert (await a.ends("job")).phase is Phase.STOPPED
