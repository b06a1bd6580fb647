"""agentd's own log: events with keys on standard error, one line each, as text or JSON.

Whoever logs never waits: lines pass through a bounded queue to one thread, so that a reader of standard
error who stops reading cannot stop the event loop. What does not fit is counted, and the count is logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import queue
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from agentd.config.model import LogConfig, LogFormat

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    # Python 3.10 has no parameters for it.
    _StreamHandler = logging.StreamHandler

QUEUE_LIMIT: Final = 10_000
"""Lines that wait to be written."""
WRITE_TIMEOUT: Final = 2.0
"""Seconds the last lines have to leave when agentd ends."""

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO agentd.groups: group stopped run_id=r exit=0`."""

    def format(self, record: logging.LogRecord) -> str:
        keys = "".join(f" {key}={_word(value)}" for key, value in _keys(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{keys}"
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One object on a line: time, level, logger, event, and the event's keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_keys(record),
        }
        trace = _trace(self, record)
        if trace:
            entry["exception"] = trace
        return json.dumps(entry, default=str)


class _BoundedQueueHandler(logging.handlers.QueueHandler):
    """Puts records on the queue as they are, and never waits for room."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self.dropped:
                self.queue.put_nowait(_dropped_record(self.dropped))
                self.dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Stream(_StreamHandler):
    """A stream that breaks must not fill itself with reports about that."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Writer(logging.handlers.QueueListener):
    """Writes what is queued. Its end is not waited for longer than a reader of the stream deserves."""

    def stop(self) -> None:
        thread, lines = self._thread, cast("queue.Queue[Any]", self.queue)
        while True:
            try:
                self.enqueue_sentinel()
                break
            except queue.Full:
                # The word to end is worth more than one line.
                with contextlib.suppress(queue.Empty):
                    lines.get_nowait()
        if thread is not None:
            thread.join(WRITE_TIMEOUT)
        self._thread = None


@contextlib.contextmanager
def logging_to(stream: TextIO, config: LogConfig) -> Iterator[None]:
    """Send everything logged to `stream` while the block runs; what waits is written before it ends."""
    handler = _Stream(stream)
    handler.setFormatter(JsonFormatter() if config.format is LogFormat.JSON else TextFormatter())
    lines: queue.Queue[Any] = queue.Queue(QUEUE_LIMIT)
    front = _BoundedQueueHandler(lines)
    listener = _Writer(lines, handler)
    root = logging.getLogger()
    former_level = root.level
    root.addHandler(front)
    root.setLevel(config.level.value.upper())
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(front)
        root.setLevel(former_level)
        listener.stop()


def to_standard_error(config: LogConfig) -> contextlib.AbstractContextManager[None]:
    """The daemon's log."""
    return logging_to(sys.stderr, config)


def _keys(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _word(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if text and not any(char.isspace() or char in "\"='" or not char.isprintable() for char in text):
        return text
    return json.dumps(text)


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _dropped_record(count: int) -> logging.LogRecord:
    facts = {"name": "agentd.log", "levelno": logging.WARNING, "levelname": "WARNING"}
    record = logging.makeLogRecord({**facts, "msg": "log lines dropped"})
    record.count = count
    return record
