"""A real server of the servicers on a Unix socket, over runs in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc.aio

from agentd.api.channel import CLIENT_OPTIONS
from agentd.rpc.agent import AgentServicer
from agentd.rpc.health import HealthServicer
from agentd.rpc.health_book import HealthBook
from agentd.rpc.server import add_services, make_server
from agentd.rpc.streams import OpenStreams
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub
from tests.unit.rpc.runs import MemoryRuns, NoDrainage, NoHandover, OneChunk, OneEvent, OneNode


@dataclass
class Served:
    """A server, what is behind it, and a channel to it."""

    runs: MemoryRuns
    book: HealthBook
    streams: OpenStreams
    channel: grpc.aio.Channel
    target: str

    def raw(self, method: str) -> Any:
        """A call of bytes, as a client of another version makes it."""
        call: Any = self.channel.unary_unary(method)
        return call

    @property
    def agent(self) -> Any:
        """The generated stub. Not by its type: what `read` gives would be an object of any kind."""
        channel: Any = self.channel
        return AgentServiceStub(channel)


class NoRendezvous:
    """Join and the others are tested with the real hub."""

    def __getattr__(self, name: str) -> Any:
        return None


Serving = Callable[[], AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def served_at(folder: Path) -> AsyncIterator[Served]:
    """Serve on a socket in this folder."""
    runs, streams = MemoryRuns(), OpenStreams()
    book = HealthBook(runs)
    server = make_server("n")
    add_services(
        server,
        agent=AgentServicer(runs, OneChunk(), OneNode(), OneEvent(), NoHandover(), NoDrainage(), streams),
        rendezvous=cast("Any", NoRendezvous()),
        health=HealthServicer(book, streams, "n"),
    )
    target = f"unix:{folder}/s"
    server.add_insecure_port(target)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS) as channel:
            yield Served(runs, book, streams, channel, target)
    finally:
        await server.stop(None)
