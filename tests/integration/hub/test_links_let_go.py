"""A stream that is over is let go of at once: no collector is waited for, which would keep its connection."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest

from agentd.hub import links
from agentd.hub.hub import Hub
from agentd.hub.links import GrpcHubLink
from agentd.rpc.rendezvous import RendezvousServicer
from agentd.v1.rendezvous_service_pb2_grpc import add_RendezvousServiceServicer_to_server
from tests.integration.hub.nodes import INCARNATION, CuttableLink, MemoryJournal, Node, make_spec
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def streams() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, links._GrpcStream)]


async def test_streams_that_could_not_be_opened_are_let_go_of() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens there
        node = Node("a", CuttableLink(GrpcHubLink(f"127.0.0.1:{held.getsockname()[1]}"))).start()
        await wait_until_async(lambda: node._epoch >= 4, 20.0)
        await node.close()
    assert not streams()


async def test_a_stream_that_broke_is_let_go_of() -> None:
    hub = Hub("hub", MemoryJournal(), address="hub.example:7460")
    hub.create(make_spec("a"), INCARNATION)
    server = grpc.aio.server()
    add_RendezvousServiceServicer_to_server(RendezvousServicer(hub), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    node = Node("a", CuttableLink(GrpcHubLink(f"127.0.0.1:{port}"))).start()
    await wait_until_async(lambda: node.running, 20.0)
    await server.stop(None)
    await wait_until_async(lambda: "hub lost" in node.log, 20.0)
    await node.close()
    await hub.close()
    node.link.streams.clear()
    assert not streams()
