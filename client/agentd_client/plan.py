"""What a client decides, apart from how its calls are made.

A plan is a generator: it yields effects and receives their replies, knows no channel, no thread, no event
loop and no clock, and never blocks. `drive_sync` and `drive_aio` carry plans out; everything that a client
does is a plan, so both behave alike.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

from google.protobuf.message import Message

from agentd.api.errors import AgentError
from agentd.quickdata import dataclass
from agentd_client.wire import Method

T = TypeVar("T")
AnswerT = TypeVar("AnswerT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[AnswerT]):
    """A request to one target."""

    target: str
    method: Method[AnswerT]
    request: Message
    timeout_s: float | None = None
    """Deadline. None only for a stream: its heartbeats bound the silence instead."""


class CallAll(NamedTuple):
    """Make these unary calls at once. Reply: the answer or error of each, in order."""

    calls: tuple[Call[Any], ...]


class Open(NamedTuple):
    """Start a call whose messages arrive as events under `key`. A unary call is a stream of one message."""

    key: str
    call: Call[Any]


class Close(NamedTuple):
    """Give up an opened call; nothing more arrives under its key."""

    key: str


class Receive(NamedTuple):
    """Wait for an event of any opened call. Reply: the event, or None after `timeout_s`."""

    timeout_s: float


class Pause(NamedTuple):
    """Let time pass."""

    seconds: float


class Clock(NamedTuple):
    """Reply: the monotonic time."""


class Emit(NamedTuple):
    """Hand an item to the user, who may take their time or not come back."""

    item: Any


Effect: TypeAlias = CallAll | Open | Close | Receive | Pause | Clock | Emit
Plan: TypeAlias = Generator[Effect, Any, T]


class Arrived(NamedTuple):
    """A message of an opened call."""

    key: str
    message: Message


class Ended(NamedTuple):
    """An opened call is over; `error` tells why if it broke."""

    key: str
    error: AgentError | None = None


StreamEvent: TypeAlias = Arrived | Ended


def call_all(calls: Sequence[Call[AnswerT]]) -> Plan[list[AnswerT | AgentError]]:
    """Each call once, all at once."""
    if not calls:
        return []
    return cast("list[AnswerT | AgentError]", (yield CallAll(tuple(calls))))


def receive(timeout_s: float) -> Plan[StreamEvent | None]:
    """The next event of the opened calls, or None."""
    return cast("StreamEvent | None", (yield Receive(max(0.0, timeout_s))))


def clock() -> Plan[float]:
    """The monotonic time."""
    return cast("float", (yield Clock()))
