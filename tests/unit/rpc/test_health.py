"""grpc.health.v1 as any standard client meets it."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agentd.api.errors import LimitExceeded, RunNotFound
from agentd.api.errwire import from_rpc_error
from agentd.api.types import Phase, StreamEnd, StreamEndCause
from agentd.rpc import health, health_messages
from agentd.rpc.health_book import AGENT, DAEMON, RENDEZVOUS, Health
from tests.support.waiting import wait_until_async
from tests.unit.rpc.runs import a_run
from tests.unit.rpc.served import Served, Serving

pytestmark = pytest.mark.asyncio

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
DEADLINE = 20.0


def client(served: Served) -> Any:
    """The packaged client, with the packaged messages."""
    return health_pb2_grpc.HealthStub(served.channel)


async def check(served: Served, name: str) -> int:
    answer = await client(served).Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE)
    return int(answer.status)


def watch(served: Served, name: str) -> Any:
    return client(served).Watch(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE)


async def names(served: Served) -> dict[str, int]:
    call: Any = served.channel.unary_unary(
        f"/{health_messages.SERVICE}/List", response_deserializer=health_messages.ListResponse.FromString
    )
    answer = await call(b"", timeout=DEADLINE)
    return {name: found.status for name, found in answer.statuses.items()}


async def test_nothing_serves_before_agentd_is_ready(serving: Serving) -> None:
    async with serving() as served:
        assert [await check(served, name) for name in (DAEMON, AGENT, RENDEZVOUS)] == [NOT_SERVING] * 3
        served.book.set({DAEMON: Health.SERVING, AGENT: Health.NOT_SERVING})
        assert await check(served, DAEMON) == SERVING
        assert await check(served, AGENT) == NOT_SERVING


async def test_runs_and_their_roles_have_names(serving: Serving) -> None:
    async with serving() as served:
        await served.runs.show(a_run())
        assert await check(served, "agentd.run/r") == SERVING
        assert await check(served, "agentd.run/r/default") == SERVING
        await served.runs.show(a_run(phase=Phase.RESTARTING))
        assert await check(served, "agentd.run/r") == NOT_SERVING


@pytest.mark.parametrize("name", ["none", "agentd.run", "agentd.v1"])
async def test_check_of_an_unknown_service_is_not_found(serving: Serving, name: str) -> None:
    async with serving() as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(served, name)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["agentd.run/none", "agentd.run/r/other", "agentd.run/"])
async def test_check_of_an_unknown_run_is_not_found_with_its_facts(serving: Serving, name: str) -> None:
    async with serving() as served:
        await served.runs.show(a_run())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(served, name)
    assert isinstance(from_rpc_error(caught.value, "n"), RunNotFound)


async def test_watch_tells_each_change_once(serving: Serving) -> None:
    async with serving() as served:
        call = watch(served, DAEMON)
        assert (await call.read()).status == NOT_SERVING
        served.book.set({DAEMON: Health.SERVING})
        assert (await call.read()).status == SERVING
        served.book.set({DAEMON: Health.SERVING})
        served.book.set({DAEMON: Health.NOT_SERVING})
        assert (await call.read()).status == NOT_SERVING
        call.cancel()


async def test_watch_of_an_unknown_run_waits_for_it(serving: Serving) -> None:
    async with serving() as served:
        call = watch(served, "agentd.run/r/default")
        assert (await call.read()).status == SERVICE_UNKNOWN
        await served.runs.show(a_run())
        served.book.run_changed("r")
        assert (await call.read()).status == SERVING
        call.cancel()


async def test_watch_ends_without_an_error_when_the_server_does(serving: Serving) -> None:
    async with serving() as served:
        call = watch(served, DAEMON)
        await call.read()
        served.streams.close(StreamEnd(cause=StreamEndCause.AGENTD_ENDING))
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_watchers_that_went_away_are_forgotten(serving: Serving) -> None:
    async with serving() as served:
        calls = [watch(served, f"nobody-{number}") for number in range(20)]
        for call in calls:
            await call.read()
        assert len(served.book._waiting) == 20
        for call in calls:
            call.cancel()
        await wait_until_async(lambda: not served.book._waiting)


async def test_list_tells_services_and_live_runs(serving: Serving) -> None:
    async with serving() as served:
        served.book.set({DAEMON: Health.SERVING})
        await served.runs.show(a_run())
        await served.runs.show(a_run("over", phase=Phase.SUCCEEDED))
        assert await names(served) == {
            DAEMON: SERVING,
            AGENT: NOT_SERVING,
            RENDEZVOUS: NOT_SERVING,
            "agentd.run/r": SERVING,
            "agentd.run/r/default": SERVING,
        }


async def test_list_is_bounded(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LIST_LIMIT", 2)
    async with serving() as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await names(served)
    assert isinstance(from_rpc_error(caught.value, "n"), LimitExceeded)


async def test_reflection_shows_every_service_and_its_methods(serving: Serving) -> None:
    async with serving() as served:
        channel: Any = served.channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest
        asked = [
            request(list_services=""),
            *(
                request(file_containing_symbol=n)
                for n in (AGENT, RENDEZVOUS, "agentd.v1.ErrorReason", "grpc.health.v1.Health")
            ),
        ]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked), timeout=DEADLINE)]
        shown = {service.name for service in answers[0].list_services_response.service}
        assert {AGENT, RENDEZVOUS, "grpc.health.v1.Health"} <= shown
        files = [answer.file_descriptor_response.file_descriptor_proto for answer in answers[1:]]
        assert all(files)
        assert any(b"HealthListResponse" in file for file in files[-1])
