"""When a node's heartbeats begin, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agentd.hub.links import HubLink, HubStream
from agentd.hub.messages import HubMessage, NodeMessage, SessionHeartbeat, SessionHello
from tests.integration.hub import virtual_time
from tests.integration.hub.nodes import CuttableLink, Node, Stage, make_spec


class HeardStream:
    """A stream that notes when a heartbeat goes over it."""

    def __init__(self, stream: HubStream, beats: list[float]) -> None:
        self._stream = stream
        self._beats = beats

    async def send(self, message: NodeMessage) -> None:
        if isinstance(message, SessionHeartbeat):
            self._beats.append(asyncio.get_running_loop().time())
        await self._stream.send(message)

    def __aiter__(self) -> AsyncIterator[HubMessage]:
        return self

    async def __anext__(self) -> HubMessage:
        return await self._stream.__anext__()

    async def finish(self) -> None:
        await self._stream.finish()

    async def close(self) -> None:
        await self._stream.close()


class HeardLink(CuttableLink):
    def __init__(self, link: HubLink) -> None:
        super().__init__(link)
        self.beats: list[float] = []

    async def connect(self, hello: SessionHello) -> HubStream:
        return HeardStream(await super().connect(hello), self.beats)


def test_nodes_that_join_together_do_not_beat_at_once_and_not_together() -> None:
    async def scenario() -> None:
        names = tuple(f"n{number}" for number in range(20))
        async with Stage(make_spec(*names)) as stage:
            joined_at = asyncio.get_running_loop().time()
            links = [HeardLink(stage.make_link(stage.hub)) for _ in names]
            nodes = [Node(name, link) for name, link in zip(names, links, strict=True)]
            stage.nodes.update((node.name, node) for node in nodes)
            for node in nodes:
                node.start()
            await stage.round_is(1, *nodes)
            await asyncio.sleep(3.0)
            first = [link.beats[0] - joined_at for link in links]
            assert min(first) >= 0.5
            assert max(first) <= 1.0
            assert len(set(first)) > 1, "each draws its own"
            assert all(len(link.beats) >= 2 for link in links)

    virtual_time.run(scenario())


def test_node_that_comes_back_with_workers_beats_at_once() -> None:
    """How long they may act is told by the answer alone."""

    async def scenario() -> None:
        async with Stage(make_spec("a")) as stage:
            link = HeardLink(stage.make_link(stage.hub))
            node = Node("a", link)
            stage.nodes["a"] = node.start()
            await stage.round_is(1, node)
            await link.cut()
            link.beats.clear()
            cut_at = asyncio.get_running_loop().time()
            link.up = True
            await asyncio.sleep(0.3)
            assert node.log[-1] == "hub found"
            assert link.beats, "it has beaten"
            assert link.beats[0] - cut_at <= 0.11

    virtual_time.run(scenario())
