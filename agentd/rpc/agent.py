"""AgentService: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

from agentd.api import convert, historywire
from agentd.api.errors import InvalidSpec
from agentd.api.types import LogChunk, LogGap, RunStatus, StreamEnd
from agentd.rpc.paging import page
from agentd.rpc.ports import Drainage, Handover, History, Logs, Node, Runs
from agentd.rpc.streams import OpenStreams, paced
from agentd.v1 import agent_service_pb2 as pb
from agentd.v1 import run_pb2
from agentd.v1.agent_service_pb2_grpc import AgentServiceServicer

DEFAULT_SILENCE = 10.0
"""Seconds without a message after which a stream says that it lives."""
SHORTEST_SILENCE = 0.1
LONGEST_SILENCE = 3600.0

Context = Any
"""The stubs' own context type fits no server in particular."""


class AgentServicer(AgentServiceServicer):
    """What one agentd does for its callers."""

    def __init__(
        self,
        runs: Runs,
        logs: Logs,
        node: Node,
        history: History,
        handover: Handover,
        drainage: Drainage,
        streams: OpenStreams,
    ) -> None:
        self._runs = runs
        self._logs = logs
        self._node = node
        self._history = history
        self._handover = handover
        self._drainage = drainage
        self._streams = streams
        self._messages = _Messages()

    async def Run(self, request: pb.RunRequest, context: Context) -> pb.RunResponse:
        status, created = await self._runs.run(convert.run_request_from_message(request))
        return pb.RunResponse(status=convert.run_status_to_message(status), created=created)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        if request.run_id:
            await self._runs.recall(request.run_id)
            return pb.StatusResponse(runs=[self._messages.of(self._runs.status(request.run_id))])
        runs, token = page(
            self._runs.runs(request.include_ended),
            size=request.page_size,
            token=request.page_token,
            cost=lambda run: self._messages.of(run).ByteSize(),
        )
        return pb.StatusResponse(runs=[self._messages.of(run) for run in runs], next_page_token=token)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        silence = _silence(request)
        revision = request.after_revision
        await self._runs.recall(request.run_id)
        events = self._runs.watch(request.run_id, request.incarnation, request.after_revision)
        with self._streams.open() as ending:
            async with aclosing(paced(events, ending, silence=silence)) as answers:
                async for event in answers:
                    if isinstance(event, RunStatus):
                        revision = max(revision, event.revision)
                        yield self._messages.watch_answer(event)
                    elif isinstance(event, StreamEnd):
                        yield pb.WatchResponse(end=convert.stream_end_to_message(event))
                    else:
                        yield pb.WatchResponse(heartbeat=pb.WatchHeartbeat(revision=revision))

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.StopResponse:
        status = await self._runs.stop(convert.stop_request_from_message(request), _caller(context))
        return pb.StopResponse(status=convert.run_status_to_message(status))

    async def Logs(self, request: pb.LogsRequest, context: Context) -> AsyncIterator[pb.LogsResponse]:
        await self._runs.recall(request.run_id)
        chunks = self._logs.read(convert.logs_request_from_message(request))
        with self._streams.open() as ending:
            async with aclosing(paced(chunks, ending, silence=DEFAULT_SILENCE)) as answers:
                async for event in answers:
                    if isinstance(event, LogChunk):
                        yield pb.LogsResponse(chunk=convert.log_chunk_to_message(event))
                    elif isinstance(event, LogGap):
                        yield pb.LogsResponse(gap=convert.log_gap_to_message(event))
                    elif isinstance(event, StreamEnd):
                        yield pb.LogsResponse(end=convert.stream_end_to_message(event))
                    else:
                        yield pb.LogsResponse(heartbeat=pb.LogHeartbeat())

    async def Signal(self, request: pb.SignalRequest, context: Context) -> pb.SignalResponse:
        ranks = await self._runs.signal(
            request.run_id, request.incarnation, request.signal, tuple(request.ranks), _caller(context)
        )
        return pb.SignalResponse(ranks=ranks)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        lease = await self._runs.renew_lease(request.run_id, request.incarnation)
        return convert.controller_lease_to_message(lease)

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.GetNodeResponse:
        return convert.node_info_to_message(await self._node.info())

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        page = await self._history.events(historywire.events_request_from_message(request))
        return historywire.events_page_to_message(page)

    async def ListEndedRuns(
        self, request: pb.ListEndedRunsRequest, context: Context
    ) -> pb.ListEndedRunsResponse:
        page = await self._history.ended_runs(request.page_size, request.page_token)
        return historywire.ended_runs_to_message(page)

    async def Handover(self, request: pb.HandoverRequest, context: Context) -> pb.HandoverResponse:
        return pb.HandoverResponse(pid=self._handover.ask(request.pid))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        wish = convert.drain_request_from_message(request)
        return convert.drain_report_to_message(await self._drainage.drain(wish, _caller(context)))

    async def Undrain(self, request: pb.UndrainRequest, context: Context) -> pb.UndrainResponse:
        before = await self._drainage.undrain(_caller(context))
        return pb.UndrainResponse(drain=None if before is None else convert.drain_to_message(before))


class _Messages:
    """The newest message of each run, made once for all who ask: a thousand watchers see one change."""

    LIMIT = 256

    def __init__(self) -> None:
        self._made: dict[tuple[str, int], tuple[RunStatus, pb.WatchResponse]] = {}

    def of(self, status: RunStatus) -> run_pb2.RunStatus:
        return self.watch_answer(status).status

    def watch_answer(self, status: RunStatus) -> pb.WatchResponse:
        key = (status.run_id, status.incarnation)
        made = self._made.get(key)
        if made is None or made[0] is not status:
            made = (status, pb.WatchResponse(status=convert.run_status_to_message(status)))
            self._made.pop(key, None)
            self._made[key] = made
            if len(self._made) > self.LIMIT:
                self._made.pop(next(iter(self._made)))
        return made[1]


def _caller(context: Context) -> str:
    """Where a call comes from, for people."""
    peer = unquote(str(context.peer()))
    return "this machine" if peer.startswith("unix:") else peer.partition(":")[2]


def _silence(request: pb.WatchRequest) -> float:
    if not request.HasField("heartbeat"):
        return DEFAULT_SILENCE
    seconds = convert.duration_from_message(request.heartbeat, "heartbeat")
    if not SHORTEST_SILENCE <= seconds <= LONGEST_SILENCE:
        raise InvalidSpec("heartbeat", f"is between {SHORTEST_SILENCE:g} s and {LONGEST_SILENCE:g} s")
    return seconds
