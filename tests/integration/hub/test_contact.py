"""What a node's session tells of its contact with the hub, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentd.hub import member
from agentd.hub.hub import Hub
from agentd.hub.links import HubStream, LocalHubLink
from agentd.hub.messages import Assignment, HubMessage, NodeMessage, SessionHello
from tests.integration.hub import virtual_time
from tests.integration.hub.nodes import CuttableLink, Node, Stage, make_spec, until

LEASE = 5.0


class Boottime:
    """CLOCK_BOOTTIME of a node that may be held up alone."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.held_up = 0.0
        patch.setattr(member, "boottime", lambda: self.now)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.held_up


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Boottime:
    return Boottime(monkeypatch)


def valid_for(node: Node, clock: Boottime, round_: int = 1) -> float:
    assert node.contact is not None
    return node.contact.until(round_) - clock.now


def test_answered_heartbeats_renew_the_contact_and_a_cut_lets_it_run_out(clock: Boottime) -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a", "b", fewest=1)) as stage:
            a, b = stage.add("a", "b")
            await stage.round_is(1, a, b)
            for _ in range(20):
                await asyncio.sleep(1.7)
                assert LEASE - 1.1 < valid_for(b, clock) <= LEASE
            cut_at = clock.now
            b.link.up = False
            await b.link.cut()
            await stage.round_is(2, a, within=100.0)
            assert b.running == 1
            assert valid_for(b, clock) < cut_at + LEASE - clock.now
            b.link.up = True
            await until(lambda: b.running == 3, within=100.0)
            assert valid_for(b, clock, 1) < 0
            assert valid_for(b, clock, 3) > 0

    virtual_time.run(scenario())


def test_a_stopped_round_keeps_its_contact_for_the_grace(clock: Boottime) -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a", "b", max_restarts=1)) as stage:
            a, b = stage.add("a", "b")
            await stage.round_is(1, a, b)
            a.slow_stop = 20.0
            b.fail()
            await asyncio.sleep(15.0)
            assert a.running == 1
            assert valid_for(a, clock) > LEASE - 1.1
            await stage.round_is(2, a, b)

    virtual_time.run(scenario())


def test_a_place_that_lay_unread_while_the_node_was_held_up_holds_once_the_hub_answers(
    clock: Boottime,
) -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a")) as stage:
            node = Node("a", CuttableLink(_LateLink(stage.hub, clock)))
            stage.nodes["a"] = node
            node.start()
            await until(lambda: node.running)
            assert node.log == ["welcome", "round 1"], "nobody dials again"
            assert valid_for(node, clock) > 0

    virtual_time.run(scenario())


class _LateLink(LocalHubLink):
    """The node is frozen just when the first word of a round arrives."""

    def __init__(self, hub: Hub, clock: Boottime) -> None:
        super().__init__(hub)
        self._clock = clock

    async def connect(self, hello: SessionHello) -> HubStream:
        return _LateStream(await super().connect(hello), self._clock)


class _LateStream:
    def __init__(self, stream: HubStream, clock: Boottime) -> None:
        self._stream = stream
        self._clock = clock
        self.finish, self.close = stream.finish, stream.close

    async def send(self, message: NodeMessage) -> None:
        await self._stream.send(message)

    def __aiter__(self) -> AsyncIterator[HubMessage]:
        return self

    async def __anext__(self) -> HubMessage:
        message = await self._stream.__anext__()
        if isinstance(message, Assignment) and not self._clock.held_up:
            self._clock.held_up = LEASE + 1.0
        return message
