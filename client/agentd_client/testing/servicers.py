"""The services of a fake agentd over a `World`, and the script of faults they follow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import field
from types import TracebackType
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agentd import __version__
from agentd.api import convert, historywire
from agentd.api.errors import AgentError, LogNotFound, NodeDrained, NotSupported
from agentd.api.errwire import to_status
from agentd.api.history import EndedRunsPage, EventsPage
from agentd.api.types import (
    TERMINAL,
    Drain,
    DrainReport,
    LogsRequest,
    NodeInfo,
    RunStatus,
    StopScope,
    StreamEnd,
    StreamEndCause,
)
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import rendezvous_service_pb2 as rendezvous
from agentd.v1.agent_service_pb2_grpc import AgentServiceServicer as _AgentBase
from agentd.v1.rendezvous_service_pb2_grpc import RendezvousServiceServicer as _RendezvousBase
from agentd_client.testing.world import LogFile, World

_DEFAULT_HEARTBEAT_S: Final = 1.0


@dataclass(slots=True)
class Script:
    """What one fake agent has been told to do, and what it was asked."""

    node_id: str
    address: str
    lock: threading.Condition
    """The world's: one lock for all that changes."""
    serving: dict[str, bool] = field(default_factory=lambda: {"": True})
    requests: list[Message] = field(default_factory=list)
    faults: dict[str, deque[AgentError]] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    streams: int = 0
    generation: int = 0
    """Streams of an older generation end."""
    end: StreamEnd | None = None
    """How they end. None: they break."""
    drain: Drain | None = None

    def enter(self, method: str, request: Message, context: Any) -> None:
        """Every call begins here."""
        with self.lock:
            self.requests.append(request)
            faults = self.faults.get(method)
            fault = faults.popleft() if faults else None
        time.sleep(self.delays.get(method, 0.0))
        if fault is not None:
            _abort(context, fault)

    def next_generation(self, end: StreamEnd | None) -> None:
        """End all open streams."""
        with self.lock:
            self.end = end
            self.generation += 1
            self.lock.notify_all()

    def info(self) -> NodeInfo:
        """GetNode's answer."""
        return NodeInfo(
            node_id=self.node_id,
            version=__version__,
            listen_addresses=(self.address,),
            advertised_address=self.address,
            cpus=2,
            hostname=self.node_id,
            drain=self.drain,
        )


class _Stream:
    """One open server stream: waits for changes, and breaks or ends on request."""

    def __init__(self, script: Script, changed: threading.Condition, context: Any) -> None:
        self._script = script
        self._changed = changed
        self._context = context
        self._generation = script.generation
        # A client that went away must not hold a thread until the next change.
        context.add_callback(self._wake)

    def __enter__(self) -> _Stream:
        with self._changed:
            self._script.streams += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._script.streams -= 1

    def wait(self, seconds: float) -> StreamEnd | None:
        """Called with the condition held. The end that was asked for, if any."""
        if self._generation == self._script.generation and self._context.is_active():
            self._changed.wait(seconds)
        if not self._context.is_active():
            return StreamEnd(cause=StreamEndCause.FINISHED)
        if self._generation == self._script.generation:
            return None
        if self._script.end is None:
            self._context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return self._script.end

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class AgentServicer(_AgentBase):
    """AgentService."""

    def __init__(self, script: Script, world: World) -> None:
        self._script = script
        self._world = world

    def Run(self, request: service.RunRequest, context: Any) -> service.RunResponse:
        self._script.enter("Run", request, context)
        drained, node_id = self._script.drain, self._script.node_id
        if drained is not None and not self._world.knows(node_id, request.spec.run_id):
            _abort(context, NodeDrained(node_id, drained.reason))
        try:
            status, created = self._world.start(
                self._script.node_id, self._script.address, convert.run_request_from_message(request)
            )
        except AgentError as error:
            _abort(context, error)
        return service.RunResponse(status=convert.run_status_to_message(status), created=created)

    def Status(self, request: service.StatusRequest, context: Any) -> service.StatusResponse:
        self._script.enter("Status", request, context)
        node_id = self._script.node_id
        if not request.run_id:
            return _page(self._world.list_runs(node_id, request.include_ended), request)
        try:
            status = self._world.status(node_id, request.run_id)
        except AgentError as error:
            _abort(context, error)
        return service.StatusResponse(runs=[convert.run_status_to_message(status)])

    def Watch(self, request: service.WatchRequest, context: Any) -> Iterator[service.WatchResponse]:
        self._script.enter("Watch", request, context)
        silence = request.heartbeat.ToTimedelta().total_seconds() or _DEFAULT_HEARTBEAT_S
        seen = request.after_revision
        with _Stream(self._script, self._world.changed, context) as stream:
            while True:
                end = None
                with self._world.changed:
                    status = self._status_for(request, context)
                    if status.revision <= seen and status.phase not in TERMINAL:
                        end = stream.wait(silence)
                        status = self._status_for(request, context)
                if status.revision > seen:
                    seen = status.revision
                    yield service.WatchResponse(status=convert.run_status_to_message(status))
                elif end is None:
                    yield service.WatchResponse(heartbeat=service.WatchHeartbeat(revision=seen))
                if status.phase in TERMINAL:
                    end = StreamEnd(cause=StreamEndCause.FINISHED)
                if end is not None:
                    yield service.WatchResponse(end=convert.stream_end_to_message(end))
                    return

    def Stop(self, request: service.StopRequest, context: Any) -> service.StopResponse:
        self._script.enter("Stop", request, context)
        stop = convert.stop_request_from_message(request)
        try:
            status = self._world.stop(
                self._script.node_id,
                stop.run_id,
                stop.incarnation,
                leave=stop.scope is StopScope.LEAVE,
                reason=stop.reason,
            )
        except AgentError as error:
            _abort(context, error)
        return service.StopResponse(status=convert.run_status_to_message(status))

    def Logs(self, request: service.LogsRequest, context: Any) -> Iterator[service.LogsResponse]:
        self._script.enter("Logs", request, context)
        wanted = convert.logs_request_from_message(request)
        node_id, offsets = self._script.node_id, dict[LogFile, int]()
        try:
            run = self._world.run_of(node_id, wanted.run_id, wanted.incarnation)
        except AgentError as error:
            _abort(context, error)
        offsets.update({file: at for file in run.logs if (at := _resumed_at(file, wanted))})
        if wanted.ranks and not wanted.follow and not any(_is_wanted(file, wanted) for file in run.logs):
            _abort(
                context,
                LogNotFound(wanted.run_id, ", ".join(map(str, wanted.ranks)), wanted.role, wanted.round),
            )
        with _Stream(self._script, self._world.changed, context) as stream:
            while True:
                end = None
                with self._world.changed:
                    over = run.status.phase in TERMINAL or not wanted.follow
                    chunks = self._world.chunks(run, node_id, lambda file: _is_wanted(file, wanted), offsets)
                    if not chunks and not over:
                        end = stream.wait(_DEFAULT_HEARTBEAT_S)
                for chunk in chunks:
                    yield service.LogsResponse(chunk=convert.log_chunk_to_message(chunk))
                if over:
                    end = StreamEnd(cause=StreamEndCause.FINISHED)
                if end is not None:
                    yield service.LogsResponse(end=convert.stream_end_to_message(end))
                    return

    def Signal(self, request: service.SignalRequest, context: Any) -> service.SignalResponse:
        self._script.enter("Signal", request, context)
        try:
            status = self._world.status(self._script.node_id, request.run_id, request.incarnation)
        except AgentError as error:
            _abort(context, error)
        here = [w.rank for node in status.nodes for group in node.groups for w in group.workers]
        return service.SignalResponse(ranks=[r for r in here if not request.ranks or r in request.ranks])

    def GetNode(self, request: service.GetNodeRequest, context: Any) -> service.GetNodeResponse:
        self._script.enter("GetNode", request, context)
        return convert.node_info_to_message(self._script.info())

    def Handover(self, request: service.HandoverRequest, context: Any) -> service.HandoverResponse:
        self._script.enter("Handover", request, context)
        return service.HandoverResponse(pid=self._script.info().pid)

    def Drain(self, request: service.DrainRequest, context: Any) -> service.DrainResponse:
        self._script.enter("Drain", request, context)
        wish = convert.drain_request_from_message(request)
        now = time.time()
        with self._script.lock:
            before = self._script.drain
            drain = Drain(
                mode=wish.mode,
                since=before.since if before else now,
                deadline=0.0 if wish.deadline is None else now + wish.deadline,
                reason=wish.reason,
                grace=wish.grace,
            )
            self._script.drain = drain
        return convert.drain_report_to_message(DrainReport(drain=drain))

    def Undrain(self, request: service.UndrainRequest, context: Any) -> service.UndrainResponse:
        self._script.enter("Undrain", request, context)
        with self._script.lock:
            before, self._script.drain = self._script.drain, None
        return service.UndrainResponse(drain=None if before is None else convert.drain_to_message(before))

    def RenewLease(self, request: service.RenewLeaseRequest, context: Any) -> service.RenewLeaseResponse:
        self._script.enter("RenewLease", request, context)
        try:
            lease = self._world.renew_lease(self._script.node_id, request.run_id, request.incarnation)
        except AgentError as error:
            _abort(context, error)
        return convert.controller_lease_to_message(lease)

    def ListEvents(self, request: service.ListEventsRequest, context: Any) -> service.ListEventsResponse:
        self._script.enter("ListEvents", request, context)
        try:
            events = self._world.list_events(self._script.node_id, request.run_id, request.incarnation)
        except AgentError as error:
            _abort(context, error)
        later = [event for event in events if event.id > request.after_id][-request.tail or None :]
        size = request.page_size or 200
        page = EventsPage(events=tuple(later[:size]), more=len(later) > size)
        return historywire.events_page_to_message(page)

    def ListEndedRuns(
        self, request: service.ListEndedRunsRequest, context: Any
    ) -> service.ListEndedRunsResponse:
        self._script.enter("ListEndedRuns", request, context)
        runs = self._world.list_runs(self._script.node_id, include_ended=True)
        ended = [run for run in reversed(runs) if run.phase in TERMINAL]
        start = int(request.page_token or 0)
        end = start + (request.page_size or 100)
        page = EndedRunsPage(
            runs=tuple(ended[start:end]), next_page_token=str(end) if end < len(ended) else ""
        )
        return historywire.ended_runs_to_message(page)

    def _status_for(self, request: service.WatchRequest, context: Any) -> RunStatus:
        try:
            return self._world.status(self._script.node_id, request.run_id, request.incarnation)
        except AgentError as error:
            _abort(context, error)


class RendezvousServicer(_RendezvousBase):
    """RendezvousService, as far as clients use it."""

    def __init__(self, script: Script, world: World) -> None:
        self._script = script
        self._world = world

    def Join(self, request_iterator: Iterator[rendezvous.JoinRequest], context: Any) -> NoReturn:
        _abort(context, NotSupported("Join", "(a fake)"))

    def Describe(self, request: rendezvous.DescribeRequest, context: Any) -> rendezvous.DescribeResponse:
        self._script.enter("Describe", request, context)
        try:
            status, spec = self._world.describe(self._script.node_id, request.run_id, request.incarnation)
        except AgentError as error:
            _abort(context, error)
        return rendezvous.DescribeResponse(
            status=convert.run_status_to_message(status), spec=convert.run_spec_to_message(spec)
        )

    def Terminate(self, request: rendezvous.TerminateRequest, context: Any) -> rendezvous.TerminateResponse:
        self._script.enter("Terminate", request, context)
        try:
            status = self._world.stop(
                self._script.node_id, request.run_id, request.incarnation, leave=False, reason=request.reason
            )
        except AgentError as error:
            _abort(context, error)
        return rendezvous.TerminateResponse(status=convert.run_status_to_message(status))


class HealthServicer(health_pb2_grpc.HealthServicer):
    """grpc.health.v1 Check."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        self._script.enter("Check", request, context)
        serving = self._script.serving.get(request.service)
        if serving is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        kinds = health_pb2.HealthCheckResponse
        return health_pb2.HealthCheckResponse(status=kinds.SERVING if serving else kinds.NOT_SERVING)


def _abort(context: Any, error: AgentError) -> NoReturn:
    status = to_status(error)
    context.set_trailing_metadata(status.trailing_metadata)
    context.abort(status.code, status.details)
    raise AssertionError("abort raises")


def _page(runs: list[RunStatus], request: service.StatusRequest) -> service.StatusResponse:
    start = int(request.page_token or 0)
    end = start + (request.page_size or 100)
    return service.StatusResponse(
        runs=[convert.run_status_to_message(run) for run in runs[start:end]],
        next_page_token=str(end) if end < len(runs) else "",
    )


def _is_wanted(file: LogFile, request: LogsRequest) -> bool:
    return (
        (not request.ranks or file.rank in request.ranks)
        and (not request.streams or file.stream in request.streams)
        and (not request.role or file.role == request.role)
        and (not request.round or file.round == request.round)
    )


def _resumed_at(file: LogFile, request: LogsRequest) -> int:
    for at in request.resume:
        if (at.role, at.round, at.local_rank, at.stream) == (
            file.role,
            file.round,
            file.local_rank,
            file.stream,
        ):
            return at.offset
    return 0
