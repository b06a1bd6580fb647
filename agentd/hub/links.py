"""Ways from a node to a run's hub: in this process, or over gRPC. Each gives the same words and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

import grpc

from agentd.api import convert
from agentd.api.channel import HUB_OPTIONS
from agentd.api.errors import AgentError, Unreachable
from agentd.api.errwire import RpcFailure, from_rpc_error
from agentd.api.types import ControllerLease, RunStatus
from agentd.hub.codec import (
    described_from_message,
    hello_to_message,
    request_to_message,
    response_from_message,
)
from agentd.hub.hub import Described, Hub
from agentd.hub.messages import HubMessage, NodeMessage, SessionHello
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import rendezvous_service_pb2 as pb
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub
from agentd.v1.rendezvous_service_pb2_grpc import RendezvousServiceStub

T = TypeVar("T")

CALL_TIMEOUT = 5.0
"""Deadline of one Run, Describe or Terminate."""

ChannelFactory = Callable[[str], grpc.aio.Channel]


class HubStream(Protocol):
    """One open stream to a hub. Iterating gives its words until it ends; trouble is an `AgentError`."""

    async def send(self, message: NodeMessage) -> None:
        """Say something."""

    def __aiter__(self) -> AsyncIterator[HubMessage]: ...

    async def __anext__(self) -> HubMessage: ...

    async def finish(self) -> None:
        """Say no more; return once the hub has heard everything."""

    async def close(self) -> None:
        """Give the stream up; what was not heard is lost."""


class HubLink(Protocol):
    """How a node reaches a run's hub."""

    @property
    def address(self) -> str:
        """Where the hub is, for people."""

    async def connect(self, hello: SessionHello) -> HubStream:
        """Open a stream with this hello."""

    async def describe(self, run_id: str, incarnation: int = 0) -> Described:
        """Ask for the run as a whole."""

    async def terminate(self, run_id: str, incarnation: int, grace: float | None, reason: str) -> RunStatus:
        """Ask for the end of the run on every node."""

    async def renew_lease(self, run_id: str, incarnation: int) -> ControllerLease:
        """Say that somebody looks after the run."""


class LocalHubLink:
    """The hub of this very process."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @property
    def address(self) -> str:
        """Where others find it; people read it in errors."""
        return self._hub.address or f"node {self._hub.node_id}"

    async def connect(self, hello: SessionHello) -> HubStream:
        """Open a session."""
        return self._hub.open_session(hello)

    async def describe(self, run_id: str, incarnation: int = 0) -> Described:
        """The run as a whole."""
        return self._hub.describe(run_id, incarnation)

    async def terminate(self, run_id: str, incarnation: int, grace: float | None, reason: str) -> RunStatus:
        """End the run on every node."""
        return self._hub.terminate(run_id, incarnation, grace, reason)

    async def renew_lease(self, run_id: str, incarnation: int) -> ControllerLease:
        """Say that somebody looks after the run."""
        return self._hub.renew_lease(run_id, incarnation)


def insecure_channel(address: str) -> grpc.aio.Channel:
    """A plain channel to a hub, with a connection of its own."""
    return grpc.aio.insecure_channel(address, options=HUB_OPTIONS)


class GrpcHubLink:
    """A hub on another node. Each stream and call has its own channel: no state of a dead one is kept."""

    def __init__(self, address: str, channel_factory: ChannelFactory = insecure_channel) -> None:
        self._address = address
        self._channel_factory = channel_factory

    @property
    def address(self) -> str:
        """Where the hub answers."""
        return self._address

    async def connect(self, hello: SessionHello) -> HubStream:
        """Open a stream; whether the hub takes it is known by its first word."""
        stream = _GrpcStream(self._address, self._channel_factory(self._address))
        try:
            await stream.begin(hello)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def describe(self, run_id: str, incarnation: int = 0) -> Described:
        """Ask for the run as a whole."""
        request = pb.DescribeRequest(run_id=run_id, incarnation=incarnation)
        answer = await self._call("Describe", request)
        return described_from_message(answer)

    async def terminate(self, run_id: str, incarnation: int, grace: float | None, reason: str) -> RunStatus:
        """Ask for the end of the run on every node."""
        request = pb.TerminateRequest(run_id=run_id, incarnation=incarnation, reason=reason)
        if grace is not None:
            request.grace.CopyFrom(convert.duration_to_message(grace))
        answer = await self._call("Terminate", request)
        return convert.run_status_from_message(answer.status)

    async def renew_lease(self, run_id: str, incarnation: int) -> ControllerLease:
        """Say that somebody looks after the run, as any caller says it to the hub's node."""
        request = service.RenewLeaseRequest(run_id=run_id, incarnation=incarnation)
        answer = await call_once(
            self._address, self._channel_factory, AgentServiceStub, "RenewLease", request
        )
        return convert.controller_lease_from_message(answer)

    async def _call(self, method: str, request: Any) -> Any:
        return await call_once(self._address, self._channel_factory, RendezvousServiceStub, method, request)


async def call_once(
    address: str,
    channel_factory: ChannelFactory,
    make_stub: Callable[[grpc.Channel], Any],
    method: str,
    request: Any,
    timeout: float = CALL_TIMEOUT,
) -> Any:
    """The answer to a unary call, on a channel of its own. Trouble is an `AgentError`."""
    channel = channel_factory(address)
    try:
        # The generated stubs are typed for synchronous channels.
        call = getattr(make_stub(cast("grpc.Channel", channel)), method)
        return await call(request, timeout=timeout, wait_for_ready=False)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(cast("RpcFailure", error), address, timeout=timeout, method=method) from None
    finally:
        await channel.close()


class _GrpcStream:
    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self._address = address
        self._channel = channel
        self._call: Any = _stub(channel).Join()

    async def begin(self, hello: SessionHello) -> None:
        await self._guarded(self._call.write(hello_to_message(hello)))

    async def send(self, message: NodeMessage) -> None:
        await self._guarded(self._call.write(request_to_message(message)))

    def __aiter__(self) -> AsyncIterator[HubMessage]:
        return self

    async def __anext__(self) -> HubMessage:
        while True:
            response = await self._guarded(self._call.read())
            if response is grpc.aio.EOF:
                raise StopAsyncIteration
            message = response_from_message(response)
            if message is not None:
                return message

    async def finish(self) -> None:
        await self._guarded(self._call.done_writing())
        await self._call.code()

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()

    async def _guarded(self, doing: Awaitable[T]) -> T:
        try:
            return await doing
        except grpc.aio.AioRpcError as error:
            raise self._why(error) from None
        except asyncio.InvalidStateError:
            raise Unreachable(self._address, "the stream is over") from None

    def _why(self, error: grpc.aio.AioRpcError) -> AgentError:
        return from_rpc_error(cast("RpcFailure", error), self._address, method="Join")


def _stub(channel: grpc.aio.Channel) -> Any:
    # The generated stub is typed for synchronous channels.
    return RendezvousServiceStub(cast("grpc.Channel", channel))
