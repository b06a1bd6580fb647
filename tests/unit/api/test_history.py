"""Events and ended runs survive the wire; what a newer peer tells is shown as it is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.api import historywire
from agentd.api.history import EndedRunsPage, Event, EventKind, EventsPage, EventsRequest, EventWorker
from agentd.api.types import Phase, RunStatus

numbers = st.integers(0, (1 << 32) - 1)
longs = st.integers(0, (1 << 63) - 1)
workers = st.builds(
    EventWorker,
    rank=numbers,
    local_rank=numbers,
    pid=numbers,
    exit_code=st.none() | st.integers(-(1 << 31), (1 << 31) - 1),
    signal=st.none() | st.integers(0, 64),
)
events = st.builds(
    Event,
    id=longs,
    time=st.integers(0, 4_000_000_000).map(float),
    node_id=st.text(max_size=9),
    kind=st.sampled_from([*(kind.value for kind in EventKind), "of tomorrow"]),
    run_id=st.text(max_size=9),
    incarnation=longs,
    role=st.text(max_size=9),
    phase=st.none() | st.sampled_from(Phase),
    round=numbers,
    detail=st.text(),
    workers=st.lists(workers, max_size=3).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(events, max_size=3), st.booleans())
def test_every_page_of_events_survives_the_wire(found: list[Event], more: bool) -> None:
    page = EventsPage(events=tuple(found), more=more)
    message = historywire.events_page_to_message(page)
    assert historywire.events_page_from_message(type(message).FromString(message.SerializeToString())) == page


def test_a_question_survives_the_wire() -> None:
    request = EventsRequest(run_id="r", incarnation=1, after_id=2, page_size=3, tail=4)
    assert historywire.events_request_from_message(historywire.events_request_to_message(request)) == request


def test_a_page_of_ended_runs_survives_the_wire() -> None:
    run = RunStatus(run_id="r", incarnation=3, phase=Phase.FAILED, finished_at=5.0)
    page = EndedRunsPage(runs=(run,), next_page_token="t")
    assert historywire.ended_runs_from_message(historywire.ended_runs_to_message(page)) == page
