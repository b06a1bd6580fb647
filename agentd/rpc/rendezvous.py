"""RendezvousService: decode, call, encode. The hub itself is `agentd.hub`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from agentd.api import convert
from agentd.hub.codec import described_to_message
from agentd.hub.hub import Hub
from agentd.hub.stream import answer_join
from agentd.v1 import rendezvous_service_pb2 as pb
from agentd.v1.rendezvous_service_pb2_grpc import RendezvousServiceServicer

Context = Any
"""The stubs' own context type fits no server in particular."""


class RendezvousServicer(RendezvousServiceServicer):
    """The hub of runs, for the nodes of these runs."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def Join(
        self, request_iterator: AsyncIterator[pb.JoinRequest], context: Context
    ) -> AsyncIterator[pb.JoinResponse]:
        answers: Any = answer_join(self._hub, request_iterator)
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return described_to_message(self._hub.describe(request.run_id, request.incarnation))

    async def Terminate(self, request: pb.TerminateRequest, context: Context) -> pb.TerminateResponse:
        grace = convert.duration_from_message(request.grace, "grace") if request.HasField("grace") else None
        status = self._hub.terminate(request.run_id, request.incarnation, grace, request.reason)
        return pb.TerminateResponse(status=convert.run_status_to_message(status))
