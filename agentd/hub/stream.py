"""A Join stream served: the wire's messages in, the hub's session, the wire's messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from agentd.api.errors import AgentError, InvalidSpec, Unreachable
from agentd.hub.codec import hello_from_message, request_from_message, response_to_message
from agentd.hub.hub import Hub
from agentd.hub.session import HubSession
from agentd.v1 import rendezvous_service_pb2 as pb

HELLO_TIMEOUT = 30.0
"""Seconds until a stream that says nothing is ended. A hub that thousands dial at once is as slow to hear."""

Opened = asyncio.Future[HubSession]


async def answer_join(
    hub: Hub, requests: AsyncIterator[pb.JoinRequest]
) -> AsyncGenerator[pb.JoinResponse, None]:
    """All of a Join call. Raises the `AgentError` that refuses or ends the session.

    The stream ends when the hub ends it, when the caller closes its side, or when this iterator is closed.
    """
    loop = asyncio.get_running_loop()
    opened: Opened = loop.create_future()
    reader = loop.create_task(_read(hub, requests, opened))
    patience = loop.call_later(HELLO_TIMEOUT, _give_up, hub, opened)
    try:
        session = await opened
        patience.cancel()
        async for answer in session:
            yield response_to_message(answer)
    finally:
        # As in `within`: a refusal must not hold itself, and the call with it.
        del opened
        patience.cancel()
        reader.cancel()
        await asyncio.wait([reader])


async def _read(hub: Hub, requests: AsyncIterator[pb.JoinRequest], opened: Opened) -> None:
    """Open the session that the hello asks for, and have it hear all that follows."""
    session: HubSession | None = None
    try:
        async for request in requests:
            if session is None:
                if opened.done():
                    return
                session = hub.open_session(hello_from_message(request))
                opened.set_result(session)
            elif (message := request_from_message(request)) is not None:
                await session.send(message)
        _refuse(opened, InvalidSpec("message", "the stream ended without a hello"))
    except AgentError as error:
        if session is not None:
            session.end(error)
        _refuse(opened, error)
    finally:
        if session is not None:
            await session.close()
        opened.cancel()
        del opened


def _give_up(hub: Hub, opened: Opened) -> None:
    # Not the node's fault: one that a slow network has held up shall come again.
    _refuse(opened, Unreachable(hub.address, f"no hello came within {HELLO_TIMEOUT:g} s", "Dial again."))


def _refuse(opened: Opened, error: AgentError) -> None:
    if not opened.done():
        opened.set_exception(error)
