"""How agentd's log reads, and that logging never waits."""

from __future__ import annotations

import io
import json
import logging
import queue
import threading

import pytest

from agentd.config.model import LogConfig, LogFormat, LogLevel
from agentd.daemon import eventlog
from agentd.daemon.eventlog import logging_to
from tests.support.waiting import wait_until

log = logging.getLogger("agentd.test")


def test_a_text_line_is_the_event_and_its_keys() -> None:
    stream = io.StringIO()
    with logging_to(stream, LogConfig()):
        log.info(
            "group stopped", extra={"run_id": "r", "reason": 'it said "no"', "empty": "", "pids": [1, 2]}
        )
        log.debug("not shown")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        'INFO agentd.test: group stopped run_id=r reason="it said \\"no\\"" empty="" pids=1,2'
    )


def test_a_json_line_is_one_object_also_with_an_exception() -> None:
    stream = io.StringIO()
    with logging_to(stream, LogConfig(format=LogFormat.JSON, level=LogLevel.DEBUG)):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("call failed", extra={"error_id": "e1", "odd": {1}})
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["event"]) == ("error", "agentd.test", "call failed")
    assert entry["error_id"] == "e1"
    assert "ValueError: two\nlines" in entry["exception"]


class UnreadPipe(io.StringIO):
    """Takes a first line and then blocks until somebody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked = threading.Event()
        self.reader = threading.Event()

    def write(self, text: str) -> int:
        self.blocked.set()
        self.reader.wait(30)
        return super().write(text)


def test_logging_never_waits_for_a_reader_who_stopped_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "QUEUE_LIMIT", 100)
    monkeypatch.setattr(eventlog, "WRITE_TIMEOUT", 0.05)
    stream = UnreadPipe()
    with logging_to(stream, LogConfig()):
        # Were it to wait, this would take as long as the pipe blocks and show all lines.
        for number in range(1000):
            log.info("line", extra={"number": number})
        assert stream.blocked.wait(10)
        assert not stream.getvalue()
    stream.reader.set()
    wait_until(lambda: "number=99" in stream.getvalue())
    assert "number=500" not in stream.getvalue()


def test_lines_that_did_not_fit_are_counted() -> None:
    handler = eventlog._BoundedQueueHandler(queue.Queue(1))
    record = logging.makeLogRecord({"msg": "m"})
    for _ in range(3):
        handler.enqueue(record)
    assert handler.dropped == 2
    handler.queue.get()
    handler.enqueue(record)
    told = handler.queue.get()
    assert (told.getMessage(), told.count) == ("log lines dropped", 2)
