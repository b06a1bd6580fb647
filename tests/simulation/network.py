"""Streams between members and a hub as gRPC gives them: in order, late, sometimes broken on one side only.

What was sent before a break may still arrive at the hub after the node's next stream has begun. A partition
holds packets back until it heals; a dead process resets its streams, a machine without power says nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from agentd.api.errors import AgentError, Unreachable
from agentd.api.types import ControllerLease, RunStatus
from agentd.hub.hub import Described, Hub
from agentd.hub.messages import (
    HubMessage,
    NodeMessage,
    SessionHello,
)
from agentd.hub.session import HubSession
from tests.simulation.clock import Clock, Process

HUB = "the hub"


class HubServer:
    """The hub of one agentd as the network reaches it."""

    def __init__(self, process: Process, hub: Hub) -> None:
        self.process = process
        self.hub = hub


class Network:
    """Between the hub's node and all others."""

    def __init__(self, clock: Clock, random: Random, *, delay: float, spike: float) -> None:
        self.clock = clock
        self.server: HubServer | None = None
        """None: nobody listens on the hub's port."""
        self._random = random
        self._delay, self._spike = delay, spike
        self._streams: list[RemoteStream] = []
        self._cut: set[str] = set()

    def lateness(self) -> float:
        """How long one packet takes."""
        random = self._random
        if random.random() < 0.03:
            return random.random() * self._spike
        return random.random() * self._delay

    def is_cut(self, node: str) -> bool:
        return node in self._cut

    def cut(self, node: str) -> None:
        """Pull the node's cable."""
        self._cut.add(node)

    def heal(self, node: str) -> None:
        """Plug it in again: what was held back arrives."""
        self._cut.discard(node)
        for stream in self.streams(node):
            stream.flush()

    def reset(self, node: str) -> None:
        """Break the node's streams as a middlebox does: each side learns of it from the next packet."""
        for stream in self.streams(node):
            stream.reset()

    def node_ended(self, process: Process) -> None:
        """The kernel closes what a dead process had open."""
        for stream in list(self._streams):
            if stream.client is process:
                stream.client_gone()

    def power_lost(self, node: str) -> None:
        """Nothing closes anything."""
        for stream in self.streams(node):
            stream.vanish_client()

    def hub_ended(self, *, silently: bool) -> None:
        """The hub's process is gone."""
        self.server = None
        for stream in list(self._streams):
            stream.server_gone(silently=silently)

    def streams(self, node: str) -> list[RemoteStream]:
        return [stream for stream in self._streams if stream.node == node]

    def add(self, stream: RemoteStream) -> None:
        self._streams.append(stream)

    def forget(self, stream: RemoteStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)


class _Way:
    """One direction of a stream."""

    def __init__(self, network: Network, node: str, arrive: Callable[[Any], None]) -> None:
        self._network = network
        self._node = node
        self._arrive = arrive
        self._held: list[Any] = []
        self._last = 0.0
        self.closed = False

    def push(self, process: Process, item: Any) -> None:
        if self.closed:
            return
        if self._network.is_cut(self._node):
            self._held.append((process, item))
            return
        self._last = max(self._last, process.clock.now + self._network.lateness())
        process.call_at(self._last, self._arrive, item)

    def flush(self) -> None:
        held, self._held = self._held, []
        for process, item in held:
            self.push(process, item)


class _End:
    """A stream is over: by the word of a side, or because nobody is there."""

    def __init__(self, error: AgentError | None) -> None:
        self.error = error


class RemoteStream:
    """A stream as its member sees it: a `HubStream`."""

    def __init__(self, network: Network, node: str, client: Process, server: HubServer) -> None:
        self.network = network
        self.node = node
        self.client = client
        self.server = server
        self._up = _Way(network, node, self._at_hub)
        self._down = _Way(network, node, self._at_member)
        self._inbox: deque[HubMessage | _End] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = client.create_future()
        self._session: HubSession | None = None
        self._serving: asyncio.Task[None] | None = None
        self._ended_at_hub = False
        network.add(self)

    # --- the member's side ------------------------------------------------------------------------------

    def begin(self, hello: SessionHello) -> None:
        self._up.push(self.server.process, hello)

    async def send(self, message: NodeMessage) -> None:
        if self._over.done():
            raise Unreachable(HUB, "the stream is over")
        self._up.push(self.server.process, message)

    def __aiter__(self) -> RemoteStream:
        return self

    async def __anext__(self) -> HubMessage:
        while not self._inbox:
            self._reader = self.client.create_future()
            await self._reader
        first = self._inbox[0]
        if isinstance(first, _End):
            if first.error is not None:
                raise first.error
            raise StopAsyncIteration
        self._inbox.popleft()
        return first

    async def finish(self) -> None:
        self._up.push(self.server.process, _End(None))
        await asyncio.wait([self._over])

    async def close(self) -> None:
        if not self._up.closed:
            self._up.push(self.server.process, _End(Unreachable(self.node, "cancelled")))
            self._up.closed = True
            self._down.closed = True

    # --- what arrives -----------------------------------------------------------------------------------

    def _at_member(self, item: HubMessage | _End) -> None:
        if self.client.dead or self._over.done():
            return
        if isinstance(item, _End):
            self._over.set_result(None)
        self._inbox.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _at_hub(self, item: SessionHello | NodeMessage | _End) -> None:
        if self._ended_at_hub:
            return
        if isinstance(item, SessionHello):
            self._open(item)
        elif self._session is None:
            return
        elif isinstance(item, _End):
            _at_once(self._session.close())
        else:
            try:
                _at_once(self._session.send(item))
            except AgentError as error:
                self._session.end(error)

    def _open(self, hello: SessionHello) -> None:
        if self.server.process.dead:
            self._end_at_hub(Unreachable(HUB, "connection reset"))
            return
        try:
            self._session = self.server.hub.open_session(hello)
        except AgentError as error:
            self._end_at_hub(error)
            return
        self._serving = self.server.process.create_task(self._serve(self._session))

    async def _serve(self, session: HubSession) -> None:
        """As `agentd.hub.stream.answer_join` does it."""
        error: AgentError | None = None
        try:
            async for answer in session:
                self._down.push(self.client, answer)
        except AgentError as refusal:
            error = refusal
        finally:
            await session.close()
        self._end_at_hub(error)

    def _end_at_hub(self, error: AgentError | None) -> None:
        if not self._ended_at_hub:
            self._ended_at_hub = True
            self._down.push(self.client, _End(error))
            if not self.network.is_cut(self.node):
                self.network.forget(self)

    # --- what breaks it ---------------------------------------------------------------------------------

    def flush(self) -> None:
        self._up.flush()
        self._down.flush()
        if self._ended_at_hub:
            self.network.forget(self)

    def reset(self) -> None:
        self._up.push(self.server.process, _End(Unreachable(self.node, "connection reset")))
        self._down.push(self.client, _End(Unreachable(HUB, "connection reset")))

    def client_gone(self) -> None:
        self._up.push(self.server.process, _End(Unreachable(self.node, "connection reset")))
        self._up.closed = self._down.closed = True

    def vanish_client(self) -> None:
        self._up.closed = self._down.closed = True

    def server_gone(self, *, silently: bool) -> None:
        self._ended_at_hub = True
        self._up.closed = True
        if not silently:
            self._down.push(self.client, _End(Unreachable(HUB, "connection reset")))
        self._down.closed = silently
        if silently or not self.network.is_cut(self.node):
            self.network.forget(self)


class RemoteLink:
    """How a member on another machine reaches the hub: a `HubLink`."""

    def __init__(self, network: Network, node: str, client: Process) -> None:
        self._network = network
        self._node = node
        self._client = client

    @property
    def address(self) -> str:
        return HUB

    async def connect(self, hello: SessionHello) -> RemoteStream:
        network = self._network
        if network.is_cut(self._node):
            # The caller has a deadline.
            await self._client.create_future()
        if network.server is None:
            await asyncio.sleep(network.lateness())
            raise Unreachable(HUB, "connection refused")
        stream = RemoteStream(network, self._node, self._client, network.server)
        stream.begin(hello)
        return stream

    async def describe(self, run_id: str, incarnation: int = 0) -> Described:
        raise NotImplementedError

    async def terminate(self, run_id: str, incarnation: int, grace: float | None, reason: str) -> RunStatus:
        raise NotImplementedError

    async def renew_lease(self, run_id: str, incarnation: int) -> ControllerLease:
        raise NotImplementedError


def _at_once(doing: Coroutine[Any, Any, None]) -> None:
    """Do what has nothing to wait for."""
    try:
        doing.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")
