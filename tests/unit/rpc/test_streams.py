"""Watch and Logs as their callers see them: changes, heartbeats, last words, and no trace after they go."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from agentd.api.errors import InvalidSpec
from agentd.api.errwire import from_rpc_error
from agentd.api.types import Phase, StreamEnd, StreamEndCause
from agentd.v1 import agent_service_pb2 as pb
from agentd.v1 import run_pb2
from tests.support.waiting import wait_until_async
from tests.unit.rpc.runs import a_run
from tests.unit.rpc.served import Serving

pytestmark = pytest.mark.asyncio

DEADLINE = 60.0
GOODBYE = StreamEnd(cause=StreamEndCause.AGENTD_ENDING, reason="bye")


async def status_of(call: Any) -> run_pb2.RunStatus:
    """The next snapshot: on a busy machine the watch may have been quiet for so long that it said so."""
    while not (answer := await call.read()).HasField("status"):
        assert answer.HasField("heartbeat")
    found: run_pb2.RunStatus = answer.status
    return found


async def test_watch_shows_the_snapshot_then_each_change(serving: Serving) -> None:
    async with serving() as served:
        await served.runs.show(a_run(revision=1))
        call = served.agent.Watch(pb.WatchRequest(run_id="r"), timeout=DEADLINE)
        assert (await status_of(call)).phase == run_pb2.PHASE_RUNNING
        await served.runs.show(a_run(phase=Phase.SUCCEEDED, revision=2))
        second = await status_of(call)
        assert (second.phase, second.revision) == (run_pb2.PHASE_SUCCEEDED, 2)
        call.cancel()


async def test_a_quiet_watch_says_that_it_lives_and_how_far_it_is(serving: Serving) -> None:
    async with serving() as served:
        await served.runs.show(a_run(revision=7))
        heartbeat = Duration(nanos=100_000_000)
        call = served.agent.Watch(pb.WatchRequest(run_id="r", heartbeat=heartbeat), timeout=DEADLINE)
        assert (await call.read()).status.revision == 7
        for _ in range(2):
            assert (await call.read()).heartbeat.revision == 7
        await served.runs.show(a_run(revision=8))
        assert (await status_of(call)).revision == 8
        call.cancel()


@pytest.mark.parametrize("seconds", [0, 4000])
async def test_a_heartbeat_out_of_range_is_refused(serving: Serving, seconds: int) -> None:
    async with serving() as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.agent.Watch(pb.WatchRequest(heartbeat=Duration(seconds=seconds))).read()
    assert isinstance(from_rpc_error(caught.value, "n"), InvalidSpec)


async def test_the_servers_end_has_a_last_word_and_streams_opened_later_live(serving: Serving) -> None:
    async with serving() as served:
        await served.runs.show(a_run())
        watch = served.agent.Watch(pb.WatchRequest(), timeout=DEADLINE)
        logs = served.agent.Logs(pb.LogsRequest(run_id="r", follow=True), timeout=DEADLINE)
        assert (await watch.read()).HasField("status")
        assert (await logs.read()).chunk.data == b"hi\n"
        served.streams.end(GOODBYE)
        for call in (watch, logs):
            last = (await call.read()).end
            assert (last.cause, last.reason) == (pb.STREAM_END_CAUSE_AGENTD_ENDING, "bye")
            assert await call.read() is grpc.aio.EOF
        later = served.agent.Watch(pb.WatchRequest(), timeout=DEADLINE)
        assert (await later.read()).HasField("status")
        served.streams.close(GOODBYE)
        assert (await later.read()).HasField("end")
        too_late = served.agent.Watch(pb.WatchRequest(), timeout=DEADLINE)
        answers = [answer async for answer in too_late]
        assert answers[-1].HasField("end")


async def test_a_caller_that_vanishes_leaves_nothing_in_the_server(serving: Serving) -> None:
    async with serving() as served:
        await served.runs.show(a_run())
        calls = [served.agent.Watch(pb.WatchRequest(), timeout=DEADLINE) for _ in range(20)]
        for call in calls:
            await call.read()
        assert len(served.streams) == served.runs.open_watches == 20
        for call in calls:
            call.cancel()
        await wait_until_async(lambda: len(served.streams) == served.runs.open_watches == 0)


async def test_a_thousand_watchers_all_see_a_change_and_status_still_answers(serving: Serving) -> None:
    async with serving() as served:
        await served.runs.show(a_run(revision=1))
        calls = [served.agent.Watch(pb.WatchRequest(), timeout=100) for _ in range(1000)]
        for call in calls:
            await status_of(call)
        await served.runs.show(a_run(revision=2))
        shown = await served.agent.Status(pb.StatusRequest(run_id="r"), timeout=DEADLINE)
        assert shown.runs[0].revision == 2
        statuses = await asyncio.gather(*map(status_of, calls))
        assert {status.revision for status in statuses} == {2}
        for call in calls:
            call.cancel()


async def test_status_gives_pages_and_hides_the_ended_unless_asked(serving: Serving) -> None:
    async with serving() as served:
        for number in range(5):
            await served.runs.show(a_run(f"r{number}"))
        await served.runs.show(a_run("r9", phase=Phase.FAILED))
        live = await served.agent.Status(pb.StatusRequest())
        assert [run.run_id for run in live.runs] == ["r0", "r1", "r2", "r3", "r4"]
        first = await served.agent.Status(pb.StatusRequest(include_ended=True, page_size=4))
        rest = await served.agent.Status(
            pb.StatusRequest(include_ended=True, page_size=4, page_token=first.next_page_token)
        )
        assert [run.run_id for run in (*first.runs, *rest.runs)] == ["r0", "r1", "r2", "r3", "r4", "r9"]
        assert rest.next_page_token == ""
