"""A Join stream served: the wire's messages in, the hub's session, the wire's messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agentd.api.errors import AgentError, InvalidSpec
from agentd.api.patience import within
from agentd.hub.codec import hello_from_message, request_from_message, response_to_message
from agentd.hub.hub import Hub
from agentd.hub.session import HubSession
from agentd.v1 import rendezvous_service_pb2 as pb

HELLO_TIMEOUT = 10.0


async def answer_join(hub: Hub, requests: AsyncIterator[pb.JoinRequest]) -> AsyncIterator[pb.JoinResponse]:
    """All of a Join call. Raises the `AgentError` that refuses or ends the session.

    The stream ends when the hub ends it, when the caller closes its side, or when this iterator is closed.
    """
    session = hub.open_session(hello_from_message(await _first(requests)))
    reader = asyncio.get_running_loop().create_task(_read(requests, session))
    try:
        async for answer in session:
            yield response_to_message(answer)
    finally:
        reader.cancel()
        await asyncio.wait([reader])
        await session.close()


async def _first(requests: AsyncIterator[pb.JoinRequest]) -> pb.JoinRequest:
    try:
        return await within(HELLO_TIMEOUT, requests.__anext__())
    except (StopAsyncIteration, asyncio.TimeoutError):
        raise InvalidSpec("message", f"no hello within {HELLO_TIMEOUT:g} s") from None


async def _read(requests: AsyncIterator[pb.JoinRequest], session: HubSession) -> None:
    try:
        async for request in requests:
            message = request_from_message(request)
            if message is not None:
                await session.send(message)
    except AgentError as error:
        session.end(error)
    finally:
        await session.close()
