"""RendezvousService: decode, call, encode. The hub itself is `agentd.hub`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from agentd.api import convert
from agentd.api.errors import InvalidSpec
from agentd.api.types import RunSpec, RunStatus
from agentd.hub import codec
from agentd.hub.messages import HubMessage, NodeMessage, SessionHello
from agentd.v1 import rendezvous_service_pb2 as pb
from agentd.v1.rendezvous_service_pb2_grpc import RendezvousServiceServicer

Context = Any
"""The stubs' own context type fits no server in particular."""


class Session(Protocol):
    """A node's session as the hub has it."""

    async def send(self, message: NodeMessage) -> None: ...

    def __aiter__(self) -> AsyncIterator[HubMessage]: ...

    def close(self) -> None: ...


class Rendezvous(Protocol):
    """The part of the hub that is served."""

    async def open_session(self, hello: SessionHello) -> Session: ...

    async def describe(self, run_id: str, incarnation: int) -> tuple[RunStatus, RunSpec, float]: ...

    async def terminate(
        self, run_id: str, incarnation: int, grace: float | None, reason: str
    ) -> RunStatus: ...


class RendezvousServicer(RendezvousServiceServicer):
    """The hub of runs, for the nodes of these runs."""

    def __init__(self, hub: Rendezvous) -> None:
        self._hub = hub

    async def Join(
        self, request_iterator: AsyncIterator[pb.JoinRequest], context: Context
    ) -> AsyncIterator[pb.JoinResponse]:
        hello = codec.node_message_from_message(await _first(request_iterator))
        if not isinstance(hello, SessionHello):
            raise InvalidSpec("message", "the first one of a session is its hello")
        session = await self._hub.open_session(hello)
        listening = asyncio.create_task(_listen(session, request_iterator))
        try:
            async for answer in session:
                yield codec.hub_message_to_message(answer)
            if listening.done():
                # What the node said may be why the session is over.
                listening.result()
        finally:
            session.close()
            listening.cancel()
            await asyncio.wait({listening})

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        status, spec, deadline = await self._hub.describe(request.run_id, request.incarnation)
        return pb.DescribeResponse(
            status=convert.run_status_to_message(status),
            spec=convert.run_spec_to_message(spec),
            join_deadline=convert.timestamp_to_message(deadline),
        )

    async def Terminate(self, request: pb.TerminateRequest, context: Context) -> pb.TerminateResponse:
        grace = convert.duration_from_message(request.grace, "grace") if request.HasField("grace") else None
        status = await self._hub.terminate(request.run_id, request.incarnation, grace, request.reason)
        return pb.TerminateResponse(status=convert.run_status_to_message(status))


async def _first(requests: AsyncIterator[pb.JoinRequest]) -> pb.JoinRequest:
    async for request in requests:
        return request
    raise InvalidSpec("message", "a session begins with its hello, and this one said nothing")


async def _listen(session: Session, requests: AsyncIterator[pb.JoinRequest]) -> None:
    """Hand on what the node says until it goes."""
    try:
        async for request in requests:
            await session.send(codec.node_message_from_message(request))
    finally:
        session.close()
