"""A node's stream as its hub sees it: what is heard goes into the run, what the run says waits to be read.

A reader that is slow never holds up the run: answers to heartbeats and views replace each other, and the few
messages that may not be lost are bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from typing import Protocol

from agentd.api.errors import AgentError, InvalidSpec
from agentd.hub.messages import (
    HubMessage,
    MemberMessage,
    NodeMessage,
    RunView,
    SessionHeartbeat,
    SessionHeartbeatAnswer,
    SessionHello,
)

QUEUE_LIMIT = 1024
"""Messages a node may leave unread: a round is a handful, so this is a node that reads no more."""


class SessionOwner(Protocol):
    """The run a session belongs to."""

    def heard(self, session: HubSession, message: MemberMessage) -> None:
        """The node said something of a member."""

    def stream_over(self, session: HubSession) -> None:
        """The node's side of the stream is over."""


class HubSession:
    """One open stream. `send` takes the node's words; iterating gives the hub's, until the stream ends."""

    def __init__(
        self,
        owner: SessionOwner,
        hello: SessionHello,
        roles: Collection[str],
        own_time: Callable[[], float],
    ) -> None:
        self.node_id = hello.node_id
        self.epoch = hello.session_epoch
        self._roles = roles
        self._owner = owner
        self._own_time = own_time
        self.heard_at = own_time()
        self._queue: deque[HubMessage] = deque()
        self._answer: SessionHeartbeatAnswer | None = None
        self._view: RunView | None = None
        self._newest_view: RunView | None = None
        self._greeted = False
        self._ending = False
        self._closed = False
        self._error: AgentError | None = None
        self._news = asyncio.Event()

    # --- the node's side --------------------------------------------------------------------------------

    async def send(self, message: NodeMessage) -> None:
        """Hear the node. Raises `InvalidSpec` for a role the run does not have."""
        if self._ending or self._closed:
            return
        self.heard_at = self._own_time()
        if isinstance(message, SessionHeartbeat):
            self._answer = SessionHeartbeatAnswer(sequence=message.sequence)
            self._news.set()
            return
        if message.role not in self._roles:
            raise InvalidSpec("role", f"the run has no role {message.role!r}")
        self._owner.heard(self, message)

    def __aiter__(self) -> AsyncIterator[HubMessage]:
        return self

    async def __anext__(self) -> HubMessage:
        while True:
            message = self._next()
            if message is not None:
                return message
            if self._error is not None:
                raise self._error
            if self._ending or self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    async def close(self) -> None:
        """The node's side is over: it went, or its stream broke."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        self._owner.stream_over(self)

    async def finish(self) -> None:
        """The node has nothing more to say."""
        await self.close()

    # --- the hub's side ---------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether what is told can still arrive."""
        return not (self._ending or self._closed)

    def tell(self, message: HubMessage) -> None:
        """Say something; nothing if the stream is over. A view that it was told last is no news."""
        if not self.open or message is self._newest_view:
            return
        if isinstance(message, RunView):
            self._view = self._newest_view = message
        elif len(self._queue) >= QUEUE_LIMIT:
            self._queue.clear()
            self.end()
        else:
            self._queue.append(message)
        self._news.set()

    def end(self, error: AgentError | None = None) -> None:
        """End the stream once what was told has been read."""
        if self.open:
            self._ending = True
            self._error = error
            self._news.set()

    def _next(self) -> HubMessage | None:
        message: HubMessage | None = None
        if self._queue:
            self._greeted = True
            return self._queue.popleft()
        if self._answer is not None:
            message, self._answer = self._answer, None
        elif self._view is not None and self._greeted:
            # The first word is the answer to the hello, which may have to wait for the journal.
            message, self._view = self._view, None
        return message
