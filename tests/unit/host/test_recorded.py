"""An agent's events become reports of bounded size that are still events."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.events import Event, EventSource
from agentd.host.recorded import MAX_EVENT, JournalHandler, bounded
from agentd.host.wire import Recorded


def test_an_event_is_reported_as_it_was_recorded() -> None:
    reported: list[Recorded] = []
    text = Event("a", EventSource.AGENT, 7, {"state": "START"}).serialize()
    JournalHandler(reported.append).handle(logging.makeLogRecord({"msg": text}))
    assert reported == [Recorded(event=text)]


def test_a_long_error_is_shortened_and_still_reads_as_one() -> None:
    error = json.dumps({"message": {"message": "boom" * 100_000}})
    event = Event("a", EventSource.WORKER, 7, {"global_rank": 3, "raw_error": error, "metadata": "{}"})
    short = Event.deserialize(bounded(event.serialize()))
    assert len(short.serialize()) <= MAX_EVENT
    message = json.loads(str(short.metadata["raw_error"]))["message"]
    assert message.startswith('{"message": {"message": "boomboom')
    assert message.endswith("more characters are in the worker's error file)")
    assert (short.metadata["global_rank"], short.metadata["metadata"]) == (3, "{}")


@given(
    st.builds(
        Event,
        name=st.text(max_size=20) | st.just("n" * 100_000),
        source=st.sampled_from(EventSource),
        metadata=st.dictionaries(
            st.text(max_size=5) | st.just("k" * 50_000),
            st.text(max_size=5) | st.just("é" * 50_000) | st.integers(0, 9),
            max_size=30,
        ),
    )
)
def test_every_event_fits(event: Event) -> None:
    text = bounded(event.serialize())
    assert len(text) <= MAX_EVENT
    assert Event.deserialize(text).source is event.source


def test_what_is_no_event_and_too_long_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no Event"):
        bounded("x" * (MAX_EVENT + 1))
