"""The event handler `journal`: what the group's agent records becomes a report to agentd."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from agentd.elastic.events import Event
from agentd.host.wire import Recorded

MAX_EVENT = 32 * 1024
"""Longer events are shortened: a worker's error file may have a mebibyte, and it stays where it is."""

_KEPT = 4096


class JournalHandler(logging.Handler):
    """Reports each event. For the host's one thread."""

    def __init__(self, report: Callable[[Recorded], object]) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Report it, shortened if it is too long. Raises `ValueError` if it is no event."""
        self._report(Recorded(event=bounded(record.getMessage())))


def bounded(text: str) -> str:
    """The event within `MAX_EVENT`: less of the error, in the error's own form, then less of all else."""
    if len(text) <= MAX_EVENT:
        return text
    event = Event.deserialize(text)
    error = event.metadata.get("raw_error")
    if isinstance(error, str) and len(error) > _KEPT:
        event.metadata["raw_error"] = json.dumps({"message": _shortened(error)})
    if len(event.serialize()) > MAX_EVENT:
        kept = list(event.metadata.items())[:20]
        event.metadata = {name[:64]: value[:64] if isinstance(value, str) else value for name, value in kept}
        event.name = event.name[:_KEPT]
    return event.serialize()


def _shortened(text: str) -> str:
    return f"{text[:_KEPT]} ... ({len(text) - _KEPT} more characters are in the worker's error file)"
