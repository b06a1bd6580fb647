"""Drained nodes over the death of their agentd: who has a part in a run again, and who has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.api.errors import NodeDrained
from agentd.api.types import (
    Drain,
    DrainMode,
    DrainRequest,
    Phase,
    RendezvousSpec,
    RunSpec,
    StopRequest,
    StopScope,
)
from agentd.groups.drain import Drainage
from agentd.groups.records import DrainRow
from agentd.groups.wish import drain_text
from tests.integration.groups.test_nodes import _abandon, run_on
from tests.support.noding import Neighbourhood, Node, run_spec

pytestmark = pytest.mark.asyncio

MOVE = Drain(mode=DrainMode.MOVE, since=1.0, reason="new disk")


def two_nodes() -> RunSpec:
    return run_spec(nodes=("a", "b"), rendezvous=RendezvousSpec(min_members=1, max_members=2))


async def over(hub: Node) -> None:
    await hub.registry.stop(StopRequest(run_id="job", grace=0.0))
    await hub.ends("job")


async def test_a_node_that_waits_rejoins_its_run_and_one_that_leaves_does_not(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("a") as a:
        async with near.node("b") as b:
            await run_on(two_nodes(), a, b)
            await b.runs("job")
            await Drainage("b", b.registry, b.journal, lambda: None).drain(DrainRequest(reason="new disk"))
            await _abandon(b)
        async with near.node("b") as again:
            rejoined = await again.runs("job", 2)
            assert not again.registry.accepting
            with pytest.raises(NodeDrained, match="new disk"):
                await again.run(run_spec(run_id="other"))
            # Its agentd died before it had left anything.
            await again.journal.write(DrainRow(text=drain_text(MOVE)))
            await _abandon(again)
        async with near.node("b") as last:
            lost = last.registry.status("job")
            assert (lost.phase, lost.incarnation) == (Phase.LOST, rejoined.incarnation)
            assert lost.reason.endswith("the node is drained")
            assert last.registry.group_refs() == ()
            await a.runs("job", 3)
            await over(a)


async def test_a_hub_whose_node_leaves_has_no_part_again_and_goes_on(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("b") as b:
        async with near.node("a") as a:
            await run_on(two_nodes(), a, b)
            await a.runs("job")
            await a.journal.write(DrainRow(text=drain_text(MOVE)))
            await _abandon(a)
        async with near.node("a") as again:
            assert again.registry.group_refs() == ()
            assert [ref.run_id for ref in again.registry.hub_of()] == ["job"]
            assert again.registry.status("job").from_hub
            await over(again)


async def test_a_node_that_left_and_joined_again_is_not_made_to_leave_by_its_next_agentd(
    tmp_path: Path,
) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("b") as b:
        async with near.node("a") as a:
            await run_on(two_nodes(), a, b)
            await a.runs("job")
            await a.registry.stop(StopRequest(run_id="job", scope=StopScope.LEAVE))
            await a.reaches("job", lambda status: a.registry.group_refs() == (), "to have left")
            await a.run(RunSpec(run_id="job", roles=()), join=True, node_name="a")
            await a.runs("job", 3)
            await _abandon(a)
        async with near.node("a") as again:
            await again.runs("job", 4)
            await over(again)
