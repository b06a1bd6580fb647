"""A run that ended long ago is asked for like any other."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from agentd.api.types import Phase
from agentd.v1 import agent_service_pb2 as pb
from tests.unit.rpc.runs import a_run
from tests.unit.rpc.served import Serving

pytestmark = pytest.mark.asyncio


async def test_status_and_watch_tell_of_a_run_that_only_the_journal_knows(serving: Serving) -> None:
    async with serving() as served:
        served.runs.past = {name: a_run(name, phase=Phase.FAILED) for name in ("asked", "watched")}
        (status,) = (await served.agent.Status(pb.StatusRequest(run_id="asked"))).runs
        assert status.run_id == "asked"
        watch = served.agent.Watch(pb.WatchRequest(run_id="watched"))
        assert (await watch.read()).status.run_id == "watched"
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.agent.Status(pb.StatusRequest(run_id="never"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
