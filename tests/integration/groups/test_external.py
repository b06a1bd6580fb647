"""Runs whose agents are processes of their own: a node is their hub, journals them, and starts nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentd.api.errors import AgentdEnding, InvalidSpec, RunConflict
from agentd.api.types import Command, Phase, RendezvousSpec, RoleSpec, RunSpec, StopRequest
from tests.support.noding import Neighbourhood, one_node

pytestmark = pytest.mark.asyncio

SPEC = RunSpec(
    run_id="job",
    roles=(RoleSpec(command=Command(entrypoint="")),),
    rendezvous=RendezvousSpec(min_members=2, max_members=2),
    external_agents=True,
)


async def test_the_first_to_ask_opens_the_run_and_the_others_find_it(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        opened, created = await node.run(SPEC)
        found, again = await node.run(SPEC)
        assert (created, again) == (True, False)
        assert found.incarnation == opened.incarnation > 0
        assert found.hub_address == "a"
        shown = await node.reaches("job", lambda status: status.from_hub)
        assert (shown.phase, shown.nodes, shown.missing) == (Phase.RENDEZVOUS, (), ())
        assert node.registry.group_refs() == ()
        with pytest.raises(RunConflict) as refusal:
            await node.run(replace(SPEC, max_restarts=1))
        assert refusal.value.facts["fields"] == "max_restarts"


async def test_it_ends_by_a_stop_and_its_id_is_free_again(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        opened, _ = await node.run(SPEC)
        await node.registry.stop(StopRequest(run_id="job", reason="enough"))
        end = await node.ends("job")
        assert (end.phase, end.reason) == (Phase.STOPPED, "enough")
        again, created = await node.run(SPEC)
        assert created
        assert again.incarnation > opened.incarnation


async def test_it_is_there_again_when_agentd_begins_again(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node() as node:
        opened, _ = await node.run(SPEC)
    async with near.node() as node:
        found, created = await node.run(SPEC)
        assert not created
        assert found.incarnation == opened.incarnation
        assert node.hub.live_runs == (("job", opened.incarnation),)


async def test_a_node_that_shuts_down_opens_none(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.registry.shut_down()
        with pytest.raises(AgentdEnding):
            await node.run(SPEC)


async def test_shutting_down_ends_a_run_that_no_agent_has_come_to(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(SPEC)
        await node.registry.shut_down()
        assert (await node.ends("job")).phase is Phase.STOPPED


async def test_no_node_can_take_part_in_it(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("a") as hub, near.node("b") as other:
        opened, _ = await hub.run(SPEC)
        part = {"incarnation": opened.incarnation, "hub_address": "a"}
        for request in (part, {**part, "join": True}):
            with pytest.raises(InvalidSpec, match="its agents are processes of their own"):
                await other.run(SPEC, **request)
        assert other.registry.runs(include_ended=True) == []
