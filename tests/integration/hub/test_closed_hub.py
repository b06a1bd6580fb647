"""A hub that goes away keeps its runs for the next agentd: who asks meanwhile is told to ask again."""

from __future__ import annotations

import asyncio

import pytest

from agentd.api.errors import Unreachable
from agentd.daemon.rendezvous import NodeRendezvous
from tests.integration.hub import virtual_time
from tests.integration.hub.nodes import INCARNATION, RUN, Stage, make_spec


def test_a_member_that_redials_a_closed_hub_goes_on_and_tries_again() -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a", "b")) as stage:
            a, b = stage.add("a", "b")
            await stage.round_is(1, a, b)
            await stage.hub.close()
            # Long enough for many tries.
            await asyncio.sleep(20.0)
            assert [node.error for node in (a, b)] == [None, None]
            assert [node.running for node in (a, b)] == [1, 1]
            with pytest.raises(Unreachable):
                stage.hub.describe(RUN, INCARNATION)

    virtual_time.run(scenario())


def test_a_node_asks_its_own_closed_hub_in_vain_and_without_an_error() -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a")) as stage:
            node = NodeRendezvous(stage.hub, agent_uid="uid", daemon_starts=1)
            assert node.view(RUN, INCARNATION) is not None
            await stage.hub.close()
            assert node.view(RUN, INCARNATION) is None

    virtual_time.run(scenario())
