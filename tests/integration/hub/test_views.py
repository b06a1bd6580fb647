"""Who is shown a run, and how often: a view costs as much as any other word, so each says something new."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from agentd.api.types import Phase, RunStatus
from tests.integration.hub import virtual_time
from tests.integration.hub.nodes import Node, Stage, make_spec, until


def count_views(nodes: list[Node]) -> Counter[str]:
    """How many views each of these nodes is shown from now on."""
    views: Counter[str] = Counter()

    def counted(node: Node) -> None:
        show = node.on_view

        def on_view(status: RunStatus) -> None:
            views[node.name] += 1
            show(status)

        node.on_view = on_view  # type: ignore[method-assign]

    for node in nodes:
        counted(node)
    return views


def test_nodes_that_come_to_a_large_run_together_are_shown_it_once_when_all_are_there() -> None:
    async def scenario() -> None:
        names = [f"n{number}" for number in range(200)]
        async with Stage(make_spec(*names)) as stage:
            nodes = stage.add(*names)
            views = count_views(nodes)
            await stage.round_is(1, *nodes)
            assert not views, "what they are to do goes first"
            await until(lambda: all(node.view is not None for node in nodes))
            assert {node.view.phase for node in nodes if node.view} == {Phase.RUNNING}
            await asyncio.sleep(30)
            assert views == dict.fromkeys(names, 1)

    virtual_time.run(scenario())


@pytest.mark.parametrize("count", [3, 200])
def test_a_node_that_comes_back_is_shown_the_run_though_it_is_what_it_was(count: int) -> None:
    async def scenario() -> None:
        names = [f"n{number}" for number in range(count)]
        async with Stage(make_spec(*names)) as stage:
            nodes = stage.add(*names)
            await stage.round_is(1, *nodes)
            await asyncio.sleep(30)
            views = count_views(nodes)
            await nodes[0].link.cut()
            nodes[0].link.up = True
            await until(lambda: views[names[0]])
            await asyncio.sleep(30)
            assert nodes[0].view == nodes[1].view
            assert all(views[name] <= 2 for name in names), "it went and came, at the most"

    virtual_time.run(scenario())
