"""What a caller learns when a call fails, and what it does not."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import grpc.aio
import pytest

from agentd.api.errors import AgentError, InternalError, InvalidSpec, RunConflict, RunNotFound
from agentd.api.errwire import DETAILS_KEY, from_rpc_error
from agentd.v1 import agent_service_pb2 as pb
from agentd.v1 import run_pb2
from tests.unit.rpc.served import Serving

pytestmark = pytest.mark.asyncio


def told(failure: grpc.aio.AioRpcError) -> AgentError:
    return from_rpc_error(failure, "n")


def a_request() -> pb.RunRequest:
    return pb.RunRequest(request_id="q", spec=run_pb2.RunSpec(run_id="r"))


async def test_an_error_goes_out_as_itself_with_one_error_info(serving: Serving) -> None:
    async with serving() as served:
        served.runs.failure = RunConflict("r", ["nodes", "max_restarts"])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.agent.Run(a_request())
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    error = told(caught.value)
    assert isinstance(error, RunConflict)
    assert error.facts == {"run_id": "r", "fields": "nodes, max_restarts"}
    trailers = caught.value.trailing_metadata() or ()
    assert [key for key, _ in trailers].count(DETAILS_KEY) == 1


class LogOf:
    """What a logger says, kept as text: a kept record would keep the whole server alive."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        handler = logging.Handler()
        monkeypatch.setattr(handler, "emit", self._keep)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)

    def _keep(self, record: logging.LogRecord) -> None:
        self.events.append((vars(record)["error_id"], logging.Formatter().format(record)))


async def test_a_fault_of_agentd_tells_an_id_and_keeps_its_story_in_the_log(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = LogOf("agentd.rpc", monkeypatch)
    async with serving() as served:
        served.runs.failure = ZeroDivisionError("the secret is kept")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.agent.Run(a_request())
    error = told(caught.value)
    assert isinstance(error, InternalError)
    assert "secret" not in str(error)
    ((error_id, story),) = kept.events
    assert error_id == error.facts["error_id"]
    assert "the secret is kept" in story


async def test_a_stream_that_fails_says_why_too(serving: Serving) -> None:
    async with serving() as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in served.agent.Watch(pb.WatchRequest(run_id="none")):
                pass
    assert isinstance(told(caught.value), RunNotFound)


async def test_bytes_that_are_no_message_are_the_callers_fault(serving: Serving) -> None:
    async with serving() as served:
        call = served.raw("/agentd.v1.AgentService/Run")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff")
    assert isinstance(told(caught.value), InvalidSpec)


async def test_a_call_from_the_future_is_unimplemented(serving: Serving) -> None:
    async with serving() as served:
        call = served.raw("/agentd.v1.AgentService/Teleport")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_unknown_fields_are_ignored(serving: Serving) -> None:
    async with serving() as served:
        call = served.raw("/agentd.v1.AgentService/Run")
        field_2000_as_text = b"\x82\x7d\x03new"
        answer = await call(a_request().SerializeToString() + field_2000_as_text)
    assert pb.RunResponse.FromString(answer).created


async def test_a_message_over_the_limit_is_refused_and_the_server_lives(serving: Serving) -> None:
    async with serving() as served:
        call = served.raw("/agentd.v1.AgentService/Run")
        request = a_request()
        request.spec.labels["x"] = "y" * (5 * 1024 * 1024)
        async with grpc.aio.insecure_channel(
            served.target, options=[("grpc.max_send_message_length", -1)]
        ) as channel:
            too_big: Any = channel.unary_unary("/agentd.v1.AgentService/Run")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await too_big(request.SerializeToString())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(a_request().SerializeToString())
