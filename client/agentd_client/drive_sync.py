"""Carries plans out with blocking calls: unary calls fan out as futures, each open stream has a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from agentd.api.channel import CLIENT_OPTIONS
from agentd.api.errors import AgentError
from agentd_client import plan as p
from agentd_client import stubs

T = TypeVar("T")

READ_AHEAD = 16
"""Messages of one stream that wait for the plan; beyond them the stream waits."""

_JOIN_TIMEOUT_S = 5.0
"""How long a call that was given up may take to be over."""


class SyncChannels:
    """One channel for each target, made when first needed. Safe to use from several threads."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.Channel] = {}  # guarded by _lock
        self._lock = threading.Lock()
        self._closed = False

    def get(self, target: str) -> grpc.Channel:
        """The channel to a target."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if target not in self._channels:
                self._channels[target] = grpc.insecure_channel(target, options=CLIENT_OPTIONS)
            return self._channels[target]

    def close(self) -> None:
        """Close every channel; calls under way end as cancelled."""
        with self._lock:
            self._closed = True
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()


class SyncDriver:
    """Runs any number of plans, from any number of threads, over shared channels."""

    def __init__(self) -> None:
        self._channels = SyncChannels()

    def run(self, plan: p.Plan[T]) -> T:
        """Carry a plan out and give its result; what it emits is dropped."""
        items = self.iterate(plan)
        try:
            while True:
                next(items)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def iterate(self, plan: p.Plan[T]) -> Generator[Any, None, T]:
        """Carry a plan out, giving what it emits. Leaving the iterator ends its calls."""
        session = _Session(self._channels)
        reply: Any = None
        try:
            while True:
                try:
                    effect = plan.send(reply)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                reply = None
                if isinstance(effect, p.Emit):
                    yield effect.item
                else:
                    reply = session.perform(effect)
        finally:
            plan.close()
            session.close()

    def close(self) -> None:
        """Close the channels."""
        self._channels.close()


class _Session:
    """The open calls of one running plan. Used by one thread."""

    def __init__(self, channels: SyncChannels) -> None:
        self._channels = channels
        self._events: queue.SimpleQueue[tuple[_Pump, p.StreamEvent]] = queue.SimpleQueue()
        self._pumps: dict[str, _Pump] = {}

    def perform(self, effect: p.Effect) -> Any:
        match effect:
            case p.CallAll(calls):
                return self._call_all(calls)
            case p.Receive(timeout_s):
                return self._receive(timeout_s)
            case p.Open(key, call):
                self._pumps[key] = _Pump(key, call, self._channels, self._events)
            case p.Close(key):
                self._drop(key)
            case p.Pause(seconds):
                time.sleep(seconds)
            case p.Clock():
                return time.monotonic()
        return None

    def close(self) -> None:
        for key in list(self._pumps):
            self._drop(key)

    def _call_all(self, calls: tuple[p.Call[Any], ...]) -> list[Message | AgentError]:
        futures = [(call, _start_unary(self._channels.get(call.target), call)) for call in calls]
        try:
            return [_settle(call, future) for call, future in futures]
        finally:
            for _, future in futures:
                future.cancel()
                _wait_until_over(future)

    def _receive(self, timeout_s: float) -> p.StreamEvent | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                pump, event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            pump.taken()
            # A closed key may have been opened again: what the former stream still said is not for it.
            if self._pumps.get(event.key) is pump:
                if isinstance(event, p.Ended):
                    del self._pumps[event.key]
                return event

    def _drop(self, key: str) -> None:
        pump = self._pumps.pop(key, None)
        if pump is not None:
            pump.close()


class _Pump:
    """Moves one call's messages into the queue from a thread of its own."""

    def __init__(
        self,
        key: str,
        call: p.Call[Any],
        channels: SyncChannels,
        events: queue.SimpleQueue[tuple[_Pump, p.StreamEvent]],
    ) -> None:
        self._key = key
        self._call = call
        self._events = events
        self._room = threading.Semaphore(READ_AHEAD)
        self._closed = False
        self._rpc = _start(channels.get(call.target), call)
        self._thread = threading.Thread(target=self._pump, name=f"agentd-client-{key}", daemon=True)
        self._thread.start()

    def taken(self) -> None:
        """The plan's side has taken an event out."""
        self._room.release()

    def close(self) -> None:
        self._closed = True
        self._rpc.cancel()
        self._room.release()
        self._thread.join(_JOIN_TIMEOUT_S)
        _wait_until_over(self._rpc)

    def _pump(self) -> None:
        error: AgentError | None = None
        try:
            if self._call.method.streams:
                for message in self._rpc:
                    self._put(p.Arrived(self._key, message))
            else:
                self._put(p.Arrived(self._key, self._rpc.result()))
        except grpc.RpcError as failure:
            error = stubs.error_of(failure, self._call)
        except grpc.FutureCancelledError:
            error = None
        self._put(p.Ended(self._key, error))

    def _put(self, event: p.StreamEvent) -> None:
        self._room.acquire()
        if not self._closed:
            self._events.put((self, event))


def _start_unary(channel: grpc.Channel, call: p.Call[Any]) -> Any:
    return stubs.unary(channel, call).future(call.request, timeout=call.timeout_s)


def _start(channel: grpc.Channel, call: p.Call[Any]) -> Any:
    if not call.method.streams:
        return _start_unary(channel, call)
    return stubs.stream(channel, call)(call.request, timeout=call.timeout_s)


def _wait_until_over(rpc: Any) -> None:
    """Until gRPC's own thread has let go of the call.

    It tells of the end while it holds the call's lock. A process that ends in that moment kills it there,
    and then waits for that lock for ever when it deletes the call.
    """
    over = threading.Event()
    if rpc.add_callback(over.set):
        over.wait(_JOIN_TIMEOUT_S)


def _settle(call: p.Call[Any], future: Any) -> Message | AgentError:
    try:
        message: Message = future.result()
        return message
    except grpc.RpcError as failure:
        return stubs.error_of(failure, call)
