"""History to messages and back; see `agentd.api.convert` for the rules."""

from __future__ import annotations

from agentd.api.convert import (
    PHASES,
    phase_from_message,
    run_status_from_message,
    run_status_to_message,
    timestamp_from_message,
    timestamp_to_message,
)
from agentd.api.history import EndedRunsPage, Event, EventsPage, EventsRequest, EventWorker
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import run_pb2 as run


def events_request_to_message(request: EventsRequest) -> service.ListEventsRequest:
    """The message of a question for events."""
    return service.ListEventsRequest(
        run_id=request.run_id,
        incarnation=request.incarnation,
        after_id=request.after_id,
        page_size=request.page_size,
        tail=request.tail,
    )


def events_request_from_message(message: service.ListEventsRequest) -> EventsRequest:
    """The question for events of a message."""
    return EventsRequest(
        run_id=message.run_id,
        incarnation=message.incarnation,
        after_id=message.after_id,
        page_size=message.page_size,
        tail=message.tail,
    )


def events_page_to_message(page: EventsPage) -> service.ListEventsResponse:
    """The message of a page of events."""
    return service.ListEventsResponse(events=map(event_to_message, page.events), more=page.more)


def events_page_from_message(message: service.ListEventsResponse) -> EventsPage:
    """The page of events of a message."""
    return EventsPage(events=tuple(map(event_from_message, message.events)), more=message.more)


def event_to_message(event: Event) -> service.Event:
    """The message of an event."""
    return service.Event(
        id=event.id,
        time=timestamp_to_message(event.time),
        node_id=event.node_id,
        kind=event.kind,
        run_id=event.run_id,
        incarnation=event.incarnation,
        role=event.role,
        phase=run.PHASE_UNSPECIFIED if event.phase is None else PHASES[event.phase],
        round=event.round,
        detail=event.detail,
        workers=[
            service.EventWorker(
                rank=worker.rank,
                local_rank=worker.local_rank,
                pid=worker.pid,
                exit_code=worker.exit_code,
                signal=worker.signal,
            )
            for worker in event.workers
        ],
    )


def event_from_message(message: service.Event) -> Event:
    """The event of a message."""
    return Event(
        id=message.id,
        time=timestamp_from_message(message.time),
        node_id=message.node_id,
        kind=message.kind,
        run_id=message.run_id,
        incarnation=message.incarnation,
        role=message.role,
        phase=None if message.phase == run.PHASE_UNSPECIFIED else phase_from_message(message.phase),
        round=message.round,
        detail=message.detail,
        workers=tuple(
            EventWorker(
                rank=worker.rank,
                local_rank=worker.local_rank,
                pid=worker.pid,
                exit_code=worker.exit_code if worker.HasField("exit_code") else None,
                signal=worker.signal if worker.HasField("signal") else None,
            )
            for worker in message.workers
        ),
    )


def ended_runs_to_message(page: EndedRunsPage) -> service.ListEndedRunsResponse:
    """The message of a page of ended runs."""
    return service.ListEndedRunsResponse(
        runs=map(run_status_to_message, page.runs), next_page_token=page.next_page_token
    )


def ended_runs_from_message(message: service.ListEndedRunsResponse) -> EndedRunsPage:
    """The page of ended runs of a message."""
    return EndedRunsPage(
        runs=tuple(map(run_status_from_message, message.runs)), next_page_token=message.next_page_token
    )
