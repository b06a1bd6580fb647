"""Calls to a fleet: so many at once, and not held up by the nodes that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from agentd.api.errors import Unreachable
from agentd.v1 import agent_service_pb2 as service
from agentd_client import drive_aio
from agentd_client.drive_aio import AT_ONCE, SLOW_S, AsyncDriver
from agentd_client.plan import Call, call_all
from agentd_client.wire import STATUS
from tests.integration.hub import virtual_time

COUNT = 4 * AT_ONCE
CALLS = [Call(target=f"n{number}", method=STATUS, request=service.StatusRequest()) for number in range(COUNT)]


class Nodes:
    """Answer after a while, each after its own."""

    def __init__(self, takes: Callable[[int], float]) -> None:
        self.takes = takes
        self.open = self.most = 0
        self.began: dict[str, float] = {}

    async def answer(self, call: Call[Any]) -> Message | Unreachable:
        loop = asyncio.get_running_loop()
        self.began[call.target] = loop.time() - virtual_time.START
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(self.takes(int(call.target[1:])))
        self.open -= 1
        return service.StatusResponse(next_page_token=call.target)


def ask(monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> list[Any]:
    monkeypatch.setattr(drive_aio._Session, "_unary", nodes.answer)

    async def ask_all() -> list[Any]:
        return list(await AsyncDriver().run(call_all(CALLS)))

    return virtual_time.run(ask_all())


def test_many_calls_begin_as_others_are_answered_and_answers_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(lambda number: SLOW_S / (2 + number % 7))
    answers = ask(monkeypatch, nodes)
    assert [answer.next_page_token for answer in answers] == [call.target for call in CALLS]
    assert nodes.most == AT_ONCE


def test_nodes_that_are_away_hold_up_the_others_for_moments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(lambda number: 10.0)
    ask(monkeypatch, nodes)
    assert nodes.most == COUNT
    assert max(nodes.began.values()) <= (COUNT / AT_ONCE - 1) * SLOW_S + 0.001
