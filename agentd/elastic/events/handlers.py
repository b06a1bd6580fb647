"""Where events go: logging handlers by name, built in, registered, or found by entry point.

A handler is made when its name is first used, and kept. `null` drops all and is the default; `console` writes
to stderr; `jsonl` appends to a file; `dynamic_rendezvous` is where rendezvous events go, and drops them until
another handler is registered in its place. A worker group's host registers `journal`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from typing import TypeAlias

__all__ = [
    "ENTRY_POINTS",
    "EVENTS_FILE_VARIABLE",
    "LOGGER_PREFIX",
    "JsonLinesHandler",
    "UnknownEventHandler",
    "get_logging_handler",
    "register",
]

ENTRY_POINTS = "agentd.event_handlers"
"""The entry-point group: each name leads to what `register` takes."""
EVENTS_FILE_VARIABLE = "AGENTD_EVENTS_FILE"
"""Names the file of the `jsonl` handler."""

LOGGER_PREFIX = "torchelastic-events-"
"""A destination's events pass the logger of this name and the destination's."""

Maker: TypeAlias = Callable[[], logging.Handler]


class UnknownEventHandler(KeyError):
    """No handler has this name."""

    def __init__(self, destination: str, known: tuple[str, ...]) -> None:
        """`known` are the names there are."""
        super().__init__(destination)
        self.destination = destination
        """The name that was asked for."""
        self.known = known
        """The names there are, sorted."""

    def __str__(self) -> str:
        hint = " (only inside a worker group that agentd runs)" if self.destination == "journal" else ""
        return (
            f"no event handler is called {self.destination!r}{hint}; there are {', '.join(self.known)}. "
            f"Others are added with agentd.elastic.events.register or the entry-point group {ENTRY_POINTS}"
        )


class JsonLinesHandler(logging.Handler):
    """Appends each event to a file, one line of JSON in one write: several processes may share the file.

    The file stays open; to rotate it, copy and truncate. Its directory must exist.
    """

    def __init__(self, path: str | None = None) -> None:
        """`path`: by default what the variable AGENTD_EVENTS_FILE says.

        Raises `ValueError` if neither names a file, `OSError` if it cannot be opened.
        """
        name = path or os.environ.get(EVENTS_FILE_VARIABLE, "")
        if not name:
            raise ValueError(f"the event handler jsonl needs a file: name it in {EVENTS_FILE_VARIABLE}")
        self.path = name
        """The file."""
        try:
            self._fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _cannot_open(name, error, by_variable=not path) from error
        self._torn = False
        # Last of all: from here on logging closes it when the process ends.
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        """Append the record's message. Raises `OSError` when the disk takes no more."""
        text = record.getMessage()
        if "\n" in text:
            text = json.dumps(text)
        line = f"{text}\n".encode()
        if self._torn:
            # A disk that was full cut the last line: it must not swallow this one.
            line = b"\n" + line
        self._torn = True
        written = os.write(self._fd, line)
        if written < len(line):
            raise OSError(f"{self.path}: the disk took {written} of {len(line)} bytes")
        self._torn = False

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        super().close()


def _cannot_open(name: str, error: OSError, *, by_variable: bool) -> OSError:
    """The same error as a sentence."""
    where = f" in {EVENTS_FILE_VARIABLE}" if by_variable else ""
    told = type(error)(
        f"the event handler jsonl cannot open {name!r}, its file{where}: {error.strerror}. "
        f"Name{where} a file in a folder that exists, and that this user may write"
    )
    told.errno = error.errno
    return told


_makers: dict[str, Maker | logging.Handler] = {
    "console": logging.StreamHandler,
    "dynamic_rendezvous": logging.NullHandler,
    "jsonl": JsonLinesHandler,
    "null": logging.NullHandler,
}
_handlers: dict[str, logging.Handler] = {}
_lock = threading.RLock()  # guards both; held while a handler is made, which happens once


def register(destination: str, handler: Maker | logging.Handler, *, replace: bool = False) -> None:
    """Make a handler known by a name. `handler` makes one when it is first needed, or is one.

    The same again is fine. Raises `ValueError` for another one under a known name, unless it may `replace`
    it: the former handler is then closed, and what is recorded from now on goes to the new one.
    """
    if not destination:
        raise ValueError("an event handler needs a name")
    with _lock:
        known = _makers.get(destination)
        if known is handler:
            return
        if known is not None and not replace:
            raise ValueError(
                f"the event handler {destination!r} is registered already, as {known!r}: say replace=True"
            )
        _makers[destination] = handler
        former = _handlers.pop(destination, None)
    if former is not None:
        logging.getLogger(LOGGER_PREFIX + destination).removeHandler(former)
        former.close()


def get_logging_handler(destination: str = "null") -> logging.Handler:
    """The handler of this name, made now if need be.

    Raises `UnknownEventHandler`, a `KeyError`, which names those there are; and what making it raises.
    """
    handler = _handlers.get(destination)
    if handler is not None:
        return handler
    with _lock:
        handler = _handlers.get(destination)
        if handler is None:
            handler = _handlers[destination] = _made(destination)
        return handler


def _made(destination: str) -> logging.Handler:
    maker = _makers.get(destination) or _advertised(destination)
    handler = maker if isinstance(maker, logging.Handler) else maker()
    if not isinstance(handler, logging.Handler):
        raise TypeError(f"the event handler {destination!r} is no logging.Handler: {handler!r:.80}")
    return handler


def _advertised(destination: str) -> Maker | logging.Handler:
    """What an installed package offers under the name."""
    from importlib.metadata import entry_points

    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if destination not in offered:
        raise UnknownEventHandler(destination, tuple(sorted({*_makers, *offered})))
    found: Maker | logging.Handler = offered[destination].load()
    return found
