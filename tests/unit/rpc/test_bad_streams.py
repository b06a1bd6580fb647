"""What a Join stream that says the wrong thing, or nothing, gets from the real server and the real hub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agentd.api.channel import HUB_OPTIONS
from agentd.api.errors import AgentError, InvalidSpec, Unreachable
from agentd.api.errwire import from_rpc_error
from agentd.api.types import Command, RoleSpec, RunSpec
from agentd.hub import stream
from agentd.hub.hub import Hub
from agentd.hub.state import HubRecord
from agentd.rpc.rendezvous import RendezvousServicer
from agentd.rpc.server import make_server
from agentd.v1 import rendezvous_service_pb2 as pb
from agentd.v1.rendezvous_service_pb2_grpc import add_RendezvousServiceServicer_to_server

pytestmark = pytest.mark.asyncio

HELLO = pb.JoinRequest(
    hello=pb.SessionHello(run_id="r", incarnation=1, node_id="a", agent_uid="u", session_epoch=1)
)


class NoJournal:
    async def hub_announced(self, run_id: str, incarnation: int, record: HubRecord, patience: float) -> None:
        """Nothing outlives this hub."""


@asynccontextmanager
async def joining(folder: Path) -> AsyncIterator[Any]:
    """Opens Join streams of bytes."""
    hub = Hub("hub", NoJournal(), address="hub.example:7460")
    hub.create(RunSpec(run_id="r", roles=(RoleSpec(command=Command(entrypoint="t")),), nodes=("a", "b")), 1)
    server: Any = make_server("hub")
    add_RendezvousServiceServicer_to_server(RendezvousServicer(hub), server)
    target = f"unix:{folder}/s"
    server.add_insecure_port(target)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(target, options=HUB_OPTIONS) as channel:
            yield channel.stream_stream("/agentd.v1.RendezvousService/Join")
    finally:
        await hub.close()
        await server.stop(None)


async def end_of(call: Any) -> AgentError:
    """Read to the end, and tell the error it ended with."""

    async def read() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    return from_rpc_error(caught.value, "hub")


async def test_bytes_that_are_no_hello_are_the_callers_fault(tmp_path: Path) -> None:
    async with joining(tmp_path) as join:
        call = join()
        await call.write(b"\xff\xff\xff")
        assert isinstance(await end_of(call), InvalidSpec)


async def test_bytes_that_are_no_message_end_an_open_session_and_say_why(tmp_path: Path) -> None:
    async with joining(tmp_path) as join:
        call = join()
        await call.write(HELLO.SerializeToString())
        assert pb.JoinResponse.FromString(await call.read()).HasField("welcome")
        await call.write(b"\xff\xff\xff")
        error = await end_of(call)
        assert isinstance(error, InvalidSpec)
        assert "not the message" in str(error)


async def test_a_stream_that_ends_without_a_word_is_refused(tmp_path: Path) -> None:
    async with joining(tmp_path) as join:
        call = join()
        await call.done_writing()
        assert isinstance(await end_of(call), InvalidSpec)


async def test_a_hello_that_is_late_is_asked_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HELLO_TIMEOUT", 0.05)
    async with joining(tmp_path) as join:
        error = await end_of(join())
        assert isinstance(error, Unreachable), "a node takes no other refusal for passing"
        assert "no hello" in str(error)
