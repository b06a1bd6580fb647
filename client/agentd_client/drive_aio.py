"""Carries plans out on an asyncio event loop: no thread, one task for each open call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from agentd.api.channel import CLIENT_OPTIONS
from agentd.api.errors import AgentError
from agentd.api.patience import within
from agentd_client import plan as p
from agentd_client import stubs

T = TypeVar("T")

READ_AHEAD = 16
"""Messages of one stream that wait for the plan; beyond them the stream waits."""
AT_ONCE: Final = 64
"""Calls that one plan begins together: a thousand new connections would each be answered late, and some be
given up for that."""
SLOW_S: Final = 0.05
"""How long a call keeps others from beginning: nodes that are away cost the rest no more than that."""


class Finished:
    """The last item of `AsyncDriver.iterate`: the plan's result, which an async generator cannot return."""

    def __init__(self, result: Any) -> None:
        self.result = result


class AsyncDriver:
    """Runs any number of plans on the loop it is first used on."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False

    def channel(self, target: str) -> grpc.aio.Channel:
        """The channel to a target, made when first needed."""
        if self._closed:
            raise RuntimeError("this client is closed")
        if target not in self._channels:
            self._channels[target] = grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS)
        return self._channels[target]

    async def run(self, plan: p.Plan[T]) -> T:
        """Carry a plan out and give its result; what it emits is dropped."""
        items = self.iterate(plan)
        try:
            async for item in items:
                if isinstance(item, Finished):
                    result: T = item.result
                    return result
        finally:
            await items.aclose()
        raise AssertionError("a plan ends with its result")

    async def iterate(self, plan: p.Plan[Any]) -> AsyncGenerator[Any, None]:
        """Carry a plan out, giving what it emits and at last `Finished`. Closing it ends its calls."""
        session = _Session(self)
        reply: Any = None
        try:
            while True:
                try:
                    effect = plan.send(reply)
                except StopIteration as stop:
                    yield Finished(stop.value)
                    return
                reply = None
                if isinstance(effect, p.Emit):
                    yield effect.item
                else:
                    reply = await session.perform(effect)
        finally:
            plan.close()
            await session.close()

    async def close(self) -> None:
        """Close every channel; calls under way end as cancelled."""
        self._closed = True
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()


class _Session:
    """The open calls of one running plan."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._events: asyncio.Queue[tuple[_Pump, p.StreamEvent]] = asyncio.Queue()
        self._pumps: dict[str, _Pump] = {}

    async def perform(self, effect: p.Effect) -> Any:
        match effect:
            case p.CallAll(calls):
                return await self._call_all(calls)
            case p.Receive(timeout_s):
                return await self._receive(timeout_s)
            case p.Open(key, call):
                self._pumps[key] = _Pump(key, call, self._driver.channel(call.target), self._events)
            case p.Close(key):
                await self._drop(key)
            case p.Pause(seconds):
                await asyncio.sleep(seconds)
            case p.Clock():
                return time.monotonic()
        return None

    async def close(self) -> None:
        for key in list(self._pumps):
            await self._drop(key)

    async def _call_all(self, calls: Sequence[p.Call[Any]]) -> list[Message | AgentError]:
        """Make all calls at once; of many, each as soon as one before it has been answered or is slow."""
        if len(calls) <= AT_ONCE:
            return list(await asyncio.gather(*map(self._unary, calls)))
        room, loop = asyncio.Semaphore(AT_ONCE), asyncio.get_running_loop()

        async def make(call: p.Call[Any]) -> Message | AgentError:
            await room.acquire()
            slow = loop.call_later(SLOW_S, room.release)
            try:
                return await self._unary(call)
            finally:
                # A timer that has fired has made room already.
                if loop.time() < slow.when():
                    slow.cancel()
                    room.release()

        return list(await asyncio.gather(*map(make, calls)))

    async def _unary(self, call: p.Call[Any]) -> Message | AgentError:
        try:
            message: Message = await _start_unary(self._driver.channel(call.target), call)
            return message
        except grpc.aio.AioRpcError as failure:
            return stubs.error_of(failure, call)

    async def _receive(self, timeout_s: float) -> p.StreamEvent | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                pump, event = self._events.get_nowait()
            except asyncio.QueueEmpty:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    pump, event = await within(left, self._events.get())
                except asyncio.TimeoutError:
                    return None
            pump.taken()
            # A closed key may have been opened again: what the former stream still said is not for it.
            if self._pumps.get(event.key) is pump:
                if isinstance(event, p.Ended):
                    del self._pumps[event.key]
                return event

    async def _drop(self, key: str) -> None:
        pump = self._pumps.pop(key, None)
        if pump is not None:
            await pump.close()


class _Pump:
    """Moves one call's messages into the queue from a task of its own."""

    def __init__(
        self,
        key: str,
        call: p.Call[Any],
        channel: grpc.aio.Channel,
        events: asyncio.Queue[tuple[_Pump, p.StreamEvent]],
    ) -> None:
        self._key = key
        self._call = call
        self._events = events
        self._room = asyncio.Semaphore(READ_AHEAD)
        self._rpc = _start(channel, call)
        self._task = asyncio.get_running_loop().create_task(self._pump())

    def taken(self) -> None:
        """The plan's side has taken an event out."""
        self._room.release()

    async def close(self) -> None:
        self._rpc.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _pump(self) -> None:
        error: AgentError | None = None
        try:
            if self._call.method.streams:
                async for message in self._rpc:
                    await self._put(p.Arrived(self._key, message))
            else:
                await self._put(p.Arrived(self._key, await self._rpc))
        except asyncio.CancelledError:
            # Perhaps its channel was closed under it, and the plan waits to hear of it.
            self._events.put_nowait((self, p.Ended(self._key, None)))
            raise
        except grpc.aio.AioRpcError as failure:
            error = stubs.error_of(failure, self._call)
        await self._put(p.Ended(self._key, error))

    async def _put(self, event: p.StreamEvent) -> None:
        await self._room.acquire()
        self._events.put_nowait((self, event))


def _start_unary(channel: grpc.aio.Channel, call: p.Call[Any]) -> Any:
    return stubs.unary(channel, call)(call.request, timeout=call.timeout_s)


def _start(channel: grpc.aio.Channel, call: p.Call[Any]) -> Any:
    if not call.method.streams:
        return _start_unary(channel, call)
    return stubs.stream(channel, call)(call.request, timeout=call.timeout_s)
