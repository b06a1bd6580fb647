"""Events go to JSON and back, in torch's form too, and reach the handler of their destination unharmed."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic import events
from agentd.elastic.events import Event, EventSource, NodeState, RdzvEvent

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
EVENTS = st.builds(
    Event,
    name=st.text(),
    source=st.sampled_from(EventSource),
    timestamp=st.integers(min_value=0),
    metadata=st.dictionaries(st.text(), VALUES),
)
RDZV_EVENTS = st.builds(
    RdzvEvent,
    name=st.text(),
    run_id=st.text(),
    message=st.text(),
    hostname=st.text(),
    pid=st.integers(),
    node_state=st.sampled_from(NodeState),
    master_endpoint=st.text(),
    rank=st.none() | st.integers(),
    local_id=st.none() | st.integers(),
    error_trace=st.text(),
)


class Kept(logging.Handler):
    """Keeps the lines it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def kept() -> Iterator[Kept]:
    """The handler of the destination `kept`, and of rendezvous events."""
    handler = Kept()
    events.register("kept", handler, replace=True)
    events.register("dynamic_rendezvous", handler, replace=True)
    yield handler
    events.register("dynamic_rendezvous", logging.NullHandler, replace=True)
    events.register("kept", logging.NullHandler, replace=True)


@given(EVENTS)
def test_an_event_comes_back_from_its_json_as_it_was(event: Event) -> None:
    line = event.serialize()
    assert "\n" not in line
    assert Event.deserialize(line) == event
    assert str(event) == line
    assert Event.deserialize(event) is event


@given(RDZV_EVENTS)
def test_a_rendezvous_event_comes_back_from_its_json_as_it_was(event: RdzvEvent) -> None:
    assert RdzvEvent.deserialize(event.serialize()) == event
    assert str(event) == event.serialize()
    assert RdzvEvent.deserialize(event) is event


@given(st.text() | st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_whatever_is_no_event_is_a_value_error(anything: Any) -> None:
    text = anything if isinstance(anything, str) else json.dumps(anything)
    for kind in (Event, RdzvEvent):
        with pytest.raises(ValueError, match="no "):
            kind.deserialize(text)


def test_an_unknown_source_is_a_value_error_that_names_the_known() -> None:
    with pytest.raises(ValueError, match="'LAUNCHER' is not one of AGENT, WORKER"):
        Event.deserialize('{"name": "a", "source": "LAUNCHER"}')


def test_fields_of_a_newer_writer_are_passed_over() -> None:
    assert Event.deserialize('{"name": "a", "source": "AGENT", "colour": 1}') == Event("a", EventSource.AGENT)


def test_metadata_that_json_does_not_know_stands_there_as_text() -> None:
    event = Event("a", EventSource.AGENT, metadata={"path": Path("/x")})  # type: ignore[dict-item]
    assert json.loads(event.serialize())["metadata"] == {"path": "/x"}


@pytest.mark.torch
@given(EVENTS)
def test_torch_and_we_write_the_same_and_read_each_other(event: Event) -> None:
    from torch.distributed.elastic.events.api import Event as TorchEvent
    from torch.distributed.elastic.events.api import EventSource as TorchSource

    theirs = TorchEvent(event.name, TorchSource[event.source.name], event.timestamp, event.metadata)
    assert theirs.serialize() == event.serialize()
    assert Event.deserialize(theirs.serialize()) == event
    assert TorchEvent.deserialize(event.serialize()) == theirs


@pytest.mark.torch
@given(RDZV_EVENTS)
def test_torch_and_we_write_the_same_rendezvous_event(event: RdzvEvent) -> None:
    from torch.distributed.elastic.events.api import RdzvEvent as TorchEvent

    theirs = TorchEvent.deserialize(event.serialize())
    assert theirs.serialize() == event.serialize()
    assert RdzvEvent.deserialize(theirs.serialize()) == event


def test_a_recorded_event_gets_the_present_time_unless_it_has_one(kept: Kept) -> None:
    before = int(time.time() * 1000)
    event = Event("a", EventSource.WORKER)
    events.record(event, "kept")
    events.record(Event("b", EventSource.WORKER, timestamp=7), "kept")
    first, second = map(Event.deserialize, kept.lines)
    assert before <= first.timestamp <= int(time.time() * 1000)
    assert (event.timestamp, second.timestamp) == (0, 7)


def test_recorded_events_do_not_reach_other_loggers(kept: Kept) -> None:
    root = Kept()
    logging.getLogger().addHandler(root)
    try:
        events.record(Event("a", EventSource.AGENT), "kept")
    finally:
        logging.getLogger().removeHandler(root)
    assert (len(kept.lines), root.lines) == (1, [])


def test_a_handler_added_to_the_logger_of_a_destination_listens_too() -> None:
    assert not events.is_listening("null")
    handler, logger = Kept(), logging.getLogger("torchelastic-events-null")
    logger.addHandler(handler)
    try:
        assert events.is_listening("null")
        events.record(Event("a", EventSource.AGENT))
    finally:
        logger.removeHandler(handler)
    assert Event.deserialize(handler.lines[0]).name == "a"


def test_a_handler_that_raises_is_told_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no network")

    events.register("broken", Broken())
    events.record(Event("a", EventSource.AGENT), "broken")
    events.record(Event("b", EventSource.AGENT), "broken")
    assert len(caplog.records) == 1
    assert "the event handler broken failed" in caplog.text


def test_nothing_is_built_for_a_rendezvous_event_that_nobody_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RdzvEvent", None)
    events.construct_and_record_rdzv_event("run", "joined", NodeState.INIT)


def test_a_rendezvous_event_names_its_caller_and_this_process(kept: Kept) -> None:
    events.construct_and_record_rdzv_event("run", "joined", NodeState.RUNNING, rank=3)
    (event,) = map(RdzvEvent.deserialize, kept.lines)
    expected = f"{Path(__file__).name}:test_a_rendezvous_event_names_its_caller_and_this_process"
    assert (event.name, event.pid, event.rank) == (expected, os.getpid(), 3)
    assert event.hostname == os.uname().nodename
    assert event.error_trace == ""


def test_a_failed_rendezvous_tells_the_error_at_hand_and_none_if_there_is_none(kept: Kept) -> None:
    try:
        raise ConnectionError("store gone")
    except ConnectionError:
        events.construct_and_record_rdzv_event("run", "lost", NodeState.FAILED, name="join")
    events.construct_and_record_rdzv_event("run", "lost", NodeState.FAILED)
    first, second = map(RdzvEvent.deserialize, kept.lines)
    assert first.name.endswith(":join")
    assert "ConnectionError: store gone" in first.error_trace
    assert second.error_trace == ""
