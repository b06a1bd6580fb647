"""The node of a run's hub may be done with its own part: the run is over when the hub says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.api.types import Phase, RendezvousSpec, StopRequest, StopScope
from tests.integration.groups.test_nodes import _abandon, own_workers, run_on
from tests.support.fleet import is_gone
from tests.support.noding import Neighbourhood, run_spec

pytestmark = pytest.mark.asyncio


async def test_the_next_agentd_of_a_hub_that_left_its_own_run_does_not_end_it(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    spec = run_spec(nodes=("a", "b"), rendezvous=RendezvousSpec(min_members=1, max_members=2))
    async with near.node("b") as b:
        async with near.node("a") as a:
            await run_on(spec, a, b)
            await a.runs("job")
            await a.registry.stop(StopRequest(run_id="job", scope=StopScope.LEAVE))
            before = own_workers(await b.runs("job", 2), "b")
            await a.reaches("job", lambda status: a.registry.group_refs() == (), "to have left")
            await _abandon(a)
        async with near.node("a") as again:
            first = again.registry.status("job")
            assert (first.phase, first.round, first.from_hub) == (Phase.RUNNING, 2, True)
            # It hears the hub, and then is asked to end what goes on elsewhere: so it had not ended here.
            await again.registry.stop(StopRequest(run_id="job", grace=0.0, reason="enough"))
            assert (await again.ends("job")).reason == "enough"
            assert not any(is_gone(worker.pid) for worker in before)
