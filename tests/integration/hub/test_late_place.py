"""A place that a node reads long after its hub said it, on a clock that jumps: what must happen first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import pytest

from agentd.api.types import Phase
from agentd.hub import member
from agentd.hub.hub import Hub
from agentd.hub.links import HubStream, LocalHubLink
from agentd.hub.messages import (
    Assignment,
    HubMessage,
    MemberMessage,
    NodeMessage,
    RoundGone,
    RunFinished,
    SessionHeartbeat,
    SessionHello,
    StopRound,
)
from tests.integration.hub import virtual_time
from tests.integration.hub.nodes import CuttableLink, Node, Stage, make_spec, until

LEASE = 5.0


class HeldUp(LocalHubLink):
    """The first place lies unread for longer than a lease; `then` is what the hub has said behind it.

    None in `then`: it has ended the stream.
    """

    def __init__(self, hub: Hub, then: tuple[HubMessage | None, ...], patch: pytest.MonkeyPatch) -> None:
        super().__init__(hub)
        self.late = 0.0
        self.then = deque(then)
        self.said: list[MemberMessage] = []
        patch.setattr(member, "boottime", lambda: asyncio.get_running_loop().time() + self.late)

    async def connect(self, hello: SessionHello) -> HubStream:
        return HeldUpStream(await super().connect(hello), self)


class HeldUpStream:
    def __init__(self, stream: HubStream, link: HeldUp) -> None:
        self._stream = stream
        self._link = link
        self.finish, self.close = stream.finish, stream.close

    async def send(self, message: NodeMessage) -> None:
        if not isinstance(message, SessionHeartbeat):
            self._link.said.append(message)
        await self._stream.send(message)

    def __aiter__(self) -> AsyncIterator[HubMessage]:
        return self

    async def __anext__(self) -> HubMessage:
        link = self._link
        if link.late and link.then:
            message = link.then.popleft()
            if message is None:
                await self._stream.close()
                raise StopAsyncIteration
            return message
        message = await self._stream.__anext__()
        if isinstance(message, Assignment):
            link.late = link.late or LEASE + 1.0
        return message


async def joined(stage: Stage, link: HeldUp) -> Node:
    node = Node("a", CuttableLink(link))
    stage.nodes["a"] = node.start()
    await until(lambda: link.late)
    return node


def test_it_is_given_up_with_the_stream_and_asked_for_on_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a")) as stage:
            node = await joined(stage, HeldUp(stage.hub, (None,), monkeypatch))
            await until(lambda: node.running)
            assert node.log == ["welcome", "hub lost", "hub found", "round 1"]

    virtual_time.run(scenario())


def test_it_is_nothing_any_more_behind_a_stop_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a")) as stage:
            link = HeldUp(stage.hub, (StopRound(round=1, reason="another joined"),), monkeypatch)
            node = await joined(stage, link)
            await until(lambda: node.running == 2)
            assert "round 1" not in node.log
            answers = [said for said in link.said if isinstance(said, RoundGone)]
            assert [answer.round for answer in answers] == [1]

    virtual_time.run(scenario())


def test_it_is_nothing_any_more_behind_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a")) as stage:
            link = HeldUp(stage.hub, (RunFinished(phase=Phase.STOPPED, reason="asked to"),), monkeypatch)
            node = await joined(stage, link)
            await until(lambda: node.finished)
            await asyncio.sleep(2 * LEASE)
            assert node.log == ["welcome", "finished stopped"]
            assert not node.running

    virtual_time.run(scenario())
