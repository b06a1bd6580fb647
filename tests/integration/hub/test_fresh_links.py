"""A way to a hub knows nothing of earlier ones: a hub that is back is found by the next call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agentd.api.errors import Unreachable
from agentd.hub.links import GrpcHubLink, insecure_channel

CALLS = 4


class Counter:
    """A port where every connection is counted and hung up on."""

    def __init__(self) -> None:
        self.dialled = 0
        self.address = ""

    async def count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dialled += 1
        writer.close()


@asynccontextmanager
async def counting() -> AsyncIterator[Counter]:
    made = Counter()
    server = await asyncio.start_server(made.count, "127.0.0.1", 0)
    async with server:
        made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made


@pytest.mark.asyncio
async def test_each_call_dials_though_another_channel_waits_before_its_next_try() -> None:
    async with counting() as port, insecure_channel(port.address) as other:
        link = GrpcHubLink(port.address)
        other.get_state(try_to_connect=True)
        for _ in range(CALLS):
            before = port.dialled
            with pytest.raises(Unreachable):
                await link.describe("r")
            assert port.dialled > before
