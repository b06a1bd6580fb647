"""What events are: plain values that go to JSON and back, in torch's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import Any, TypeAlias

from agentd.quickdata import dataclass

__all__ = ["Event", "EventMetadataValue", "EventSource", "NodeState", "RdzvEvent"]

EventMetadataValue: TypeAlias = str | int | float | bool | None
"""What an event's metadata may hold."""


class EventSource(str, Enum):
    """Who an event is about."""

    AGENT = "AGENT"
    """The agent, or all its workers."""
    WORKER = "WORKER"
    """One worker."""


class NodeState(str, Enum):
    """Where a node stands in a rendezvous."""

    INIT = "INIT"
    """It wants to take part."""
    RUNNING = "RUNNING"
    """It takes part; the round is not complete yet."""
    SUCCEEDED = "SUCCEEDED"
    """The rendezvous is complete."""
    FAILED = "FAILED"
    """It is not, and will not be."""


@dataclass
class Event:
    """Something that happened to an agent or a worker. The fields are torch's."""

    name: str
    """What happened: `torchelastic.worker.status.<STATE>` for what the agent records."""
    source: EventSource
    """Who it is about."""
    timestamp: int = 0
    """Milliseconds since the epoch; 0 until `record`, which writes its own time then."""
    metadata: dict[str, EventMetadataValue] = field(default_factory=dict)
    """More about it, by name."""

    def __str__(self) -> str:
        return self.serialize()

    def serialize(self) -> str:
        """The event as one line of JSON. What JSON has no form for in `metadata` stands there as text."""
        return json.dumps(_body(self), default=str)

    @staticmethod
    def deserialize(data: str | Event) -> Event:
        """The event of such a line, from torch as well; an `Event` is answered as it is.

        Fields that are not known here are passed over. Raises `ValueError` if it is no event.
        """
        if isinstance(data, Event):
            return data
        body = _known(Event, data)
        body["source"] = _member(EventSource, body["source"])
        return Event(**body)


@dataclass
class RdzvEvent:
    """A step of a rendezvous, as the node saw it. The fields are torch's."""

    name: str
    """`<file>:<what was done>`."""
    run_id: str
    """The run whose rendezvous it is."""
    message: str
    """What happened, for people."""
    hostname: str
    """The node's name."""
    pid: int
    """Its process."""
    node_state: NodeState
    """Where the node stands."""
    master_endpoint: str = ""
    """Of the rendezvous' store, if known."""
    rank: int | None = None
    """The node's rank, once it has one."""
    local_id: int | None = None
    """Tells apart several of one process."""
    error_trace: str = ""
    """Where it failed, if it did."""

    def __str__(self) -> str:
        return self.serialize()

    def serialize(self) -> str:
        """The event as one line of JSON."""
        return json.dumps(_body(self), default=str)

    @staticmethod
    def deserialize(data: str | RdzvEvent) -> RdzvEvent:
        """The event of such a line. Raises `ValueError` if it is none."""
        if isinstance(data, RdzvEvent):
            return data
        body = _known(RdzvEvent, data)
        body["node_state"] = _member(NodeState, body["node_state"])
        return RdzvEvent(**body)


def _body(event: Event | RdzvEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__dataclass_fields__}


def _known(kind: type[Event | RdzvEvent], data: str) -> dict[str, Any]:
    """The fields of `kind` in a line of JSON; at least those that have no default."""
    try:
        body = json.loads(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no {kind.__name__}: {error}: {data!r:.80}") from None
    if not isinstance(body, Mapping):
        raise ValueError(f"no {kind.__name__}: not a JSON object: {data!r:.80}")
    names = kind.__dataclass_fields__
    lacking = [name for name in _REQUIRED[kind] if name not in body]
    if lacking:
        raise ValueError(f"no {kind.__name__}: it lacks {', '.join(lacking)}: {data!r:.80}")
    return {name: body[name] for name in names if name in body}


_REQUIRED: Mapping[type, tuple[str, ...]] = {
    Event: ("name", "source"),
    RdzvEvent: ("name", "run_id", "message", "hostname", "pid", "node_state"),
}


def _member(kind: type[Enum], name: object) -> Any:
    try:
        return kind[str(name)]
    except KeyError:
        raise ValueError(f"{name!r} is not one of {', '.join(kind.__members__)}") from None
