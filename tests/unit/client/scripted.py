"""A driver without a network: answers from a table, a clock that only waiting moves, all calls noted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message

from agentd.api.errors import AgentError
from agentd_client import plan as p

T = TypeVar("T")
Answer = Callable[[p.Call[Any]], Message | AgentError]


class Scripted:
    """Carries one plan out. `answer` decides unary calls; `events` come in order, each after a time."""

    def __init__(self, answer: Answer, events: Iterable[tuple[float, p.StreamEvent]] = ()) -> None:
        self._answer = answer
        self._events = deque(events)
        self.now = 1000.0
        self.calls: list[p.Call[Any]] = []
        self.batches: list[tuple[str, ...]] = []
        self.opened: list[p.Call[Any]] = []
        self.open_keys: set[str] = set()
        self.emitted: list[Any] = []

    def run(self, plan: p.Plan[T]) -> T:
        """The plan's result."""
        reply: Any = None
        while True:
            try:
                effect = plan.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply = self._perform(effect)

    def _perform(self, effect: p.Effect) -> Any:
        match effect:
            case p.CallAll(calls):
                self.calls.extend(calls)
                self.batches.append(tuple(f"{call.method.name} {call.target}" for call in calls))
                return [self._answer(call) for call in calls]
            case p.Receive(timeout_s):
                return self._receive(timeout_s)
            case p.Open(key, call):
                assert key not in self.open_keys, f"{key} is open already"
                self.opened.append(call)
                self.open_keys.add(key)
            case p.Close(key):
                self.open_keys.discard(key)
            case p.Pause(seconds):
                self.now += seconds
            case p.Clock():
                return self.now
            case p.Emit(item):
                self.emitted.append(item)
        return None

    def _receive(self, timeout_s: float) -> p.StreamEvent | None:
        if not self._events or self._events[0][0] > timeout_s:
            assert timeout_s < 1e6, "the plan waits for ever"
            self.now += timeout_s
            if self._events:
                after, event = self._events.popleft()
                self._events.appendleft((after - timeout_s, event))
            return None
        after, event = self._events.popleft()
        self.now += after
        if isinstance(event, p.Ended):
            self.open_keys.discard(event.key)
        return event
