"""Events of the agent and its rendezvous, recorded through handlers of `logging`: torch's `elastic.events`.

    record(Event(name="checkpoint", source=EventSource.WORKER, metadata={"step": 7}), destination="jsonl")

Where nothing listens an event costs nothing but its own making, and no handler's error harms who records.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from agentd.elastic.events.api import Event, EventMetadataValue, EventSource, NodeState, RdzvEvent
from agentd.elastic.events.handlers import (
    LOGGER_PREFIX,
    UnknownEventHandler,
    get_logging_handler,
    register,
)
from agentd.elastic.tolerance import tolerate

__all__ = [
    "Event",
    "EventMetadataValue",
    "EventSource",
    "NodeState",
    "RdzvEvent",
    "UnknownEventHandler",
    "construct_and_record_rdzv_event",
    "get_logging_handler",
    "is_listening",
    "record",
    "record_rdzv_event",
    "register",
]

RENDEZVOUS = "dynamic_rendezvous"
"""The destination of rendezvous events."""

_loggers: dict[str, logging.Logger] = {}


def record(event: Event, destination: str = "null") -> None:
    """Give the event to the handler of this name, as a line of JSON at level INFO.

    One without a timestamp gets the present one. The logger is `torchelastic-events-<destination>`; it passes
    nothing on to others, and its level is LOGLEVEL, by default INFO. Raises `UnknownEventHandler`, and what
    making the handler for the first time raises, but nothing that the handler does.
    """
    if not is_listening(destination):
        return
    if not event.timestamp:
        event = replace(event, timestamp=int(time.time() * 1000))
    _record(event, destination)


def record_rdzv_event(event: RdzvEvent) -> None:
    """Give the event to the handler `dynamic_rendezvous`: the null one, unless another is registered."""
    if is_listening(RENDEZVOUS):
        _record(event, RENDEZVOUS)


def construct_and_record_rdzv_event(
    run_id: str,
    message: str,
    node_state: NodeState,
    name: str = "",
    hostname: str = "",
    pid: int | None = None,
    master_endpoint: str = "",
    local_id: int | None = None,
    rank: int | None = None,
) -> None:
    """Record a rendezvous event of this node; nothing at all is done unless somebody listens.

    The event's name is `<the caller's file>:<name>`, `name` being the calling function by default. `hostname`
    and `pid` are this machine's and process' by default. For FAILED the exception being handled is told.
    """
    if not is_listening(RENDEZVOUS):
        return
    caller = sys._getframe(1).f_code
    event = RdzvEvent(
        name=f"{Path(caller.co_filename).name}:{name or caller.co_name}",
        run_id=run_id,
        message=message,
        # Not the qualified name: asking DNS may block for seconds.
        hostname=hostname or os.uname().nodename,
        pid=pid or os.getpid(),
        node_state=node_state,
        master_endpoint=master_endpoint,
        rank=rank,
        local_id=local_id,
        error_trace=_handled_error() if node_state is NodeState.FAILED else "",
    )
    record_rdzv_event(event)


def is_listening(destination: str) -> bool:
    """Whether an event recorded there would reach any handler: ask before building what is dear.

    Raises as `record` does.
    """
    logger = _logger_of(destination)
    dropped = len(logger.handlers) == 1 and type(logger.handlers[0]) is logging.NullHandler
    return not dropped and logger.isEnabledFor(logging.INFO)


def _logger_of(destination: str) -> logging.Logger:
    handler = get_logging_handler(destination)
    logger = _loggers.get(destination)
    if logger is None:
        logger = logging.getLogger(LOGGER_PREFIX + destination)
        logger.setLevel(_level())
        logger.propagate = False
        _loggers[destination] = logger
    if handler not in logger.handlers:
        logger.addHandler(handler)
    return logger


def _record(event: Event | RdzvEvent, destination: str) -> None:
    try:
        _logger_of(destination).info(event.serialize())
    except Exception as error:  # noqa: BLE001 - whatever a handler does, what is recorded goes on
        tolerate(f"the event handler {destination}", error)


def _level() -> int:
    named = logging.getLevelName(os.environ.get("LOGLEVEL", "").strip().upper())
    return named if isinstance(named, int) else logging.INFO


def _handled_error() -> str:
    import traceback

    return traceback.format_exc() if sys.exc_info()[0] is not None else ""
