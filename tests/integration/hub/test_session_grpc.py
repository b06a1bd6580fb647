"""The same hub and nodes over a real gRPC server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest

from agentd.api.channel import SERVER_OPTIONS
from agentd.api.errors import AgentError, InvalidSpec, RunNotFound, Unreachable
from agentd.api.errwire import to_status
from agentd.api.types import Phase
from agentd.hub.codec import described_to_message
from agentd.hub.hub import Hub
from agentd.hub.links import GrpcHubLink, insecure_channel
from agentd.hub.messages import MemberDone, SessionHello
from agentd.hub.stream import answer_join
from agentd.v1 import rendezvous_service_pb2 as pb
from agentd.v1 import run_pb2
from agentd.v1.rendezvous_service_pb2_grpc import (
    RendezvousServiceServicer,
    RendezvousServiceStub,
    add_RendezvousServiceServicer_to_server,
)
from tests.integration.hub.nodes import INCARNATION, RUN, Stage, make_spec, until

Scenario = Callable[[], Coroutine[Any, Any, None]]


def on_real_time(scenario: Scenario) -> Callable[[], None]:
    def test() -> None:
        asyncio.run(asyncio.wait_for(scenario(), 60))

    test.__name__ = scenario.__name__
    return test


class Servicer(RendezvousServiceServicer):
    """Decode, call, encode; errors as the daemon's interceptor turns them."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    async def Join(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for answer in answer_join(self.hub, request_iterator):
                yield answer
        except AgentError as error:
            await context.abort(*to_status(error))

    async def Describe(self, request: Any, context: Any) -> Any:
        try:
            return described_to_message(self.hub.describe(request.run_id, request.incarnation))
        except AgentError as error:
            await context.abort(*to_status(error))

    async def Terminate(self, request: Any, context: Any) -> Any:
        self.hub.terminate(request.run_id, request.incarnation, None, request.reason)
        return pb.TerminateResponse(status=run_pb2.RunStatus(run_id=request.run_id))


class GrpcStage(Stage):
    """A stage whose nodes reach the hub over the network."""

    async def __aenter__(self) -> GrpcStage:
        await super().__aenter__()
        self.port = 0
        await self.serve()
        self.make_link = lambda _hub: GrpcHubLink(f"127.0.0.1:{self.port}")
        return self

    async def serve(self) -> None:
        self.server = grpc.aio.server(options=list(SERVER_OPTIONS))
        add_RendezvousServiceServicer_to_server(Servicer(self.hub), self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def __aexit__(self, *facts: object) -> None:
        await super().__aexit__(*facts)
        await self.server.stop(None)


@on_real_time
async def test_run_over_the_network_from_hello_through_a_restart_to_success() -> None:
    async with GrpcStage(make_spec("a", "b", "c", max_restarts=1)) as stage:
        a, b, c = stage.add("a", "b", "c")
        await stage.round_is(1, a, b, c)
        assert [node.last.group_rank for node in (a, b, c)] == [0, 1, 2]
        assert b.spec == stage.spec
        b.fail(age=0.1)
        await stage.round_is(2, a, b, c)
        for node in (a, b, c):
            node.succeed()
        for node in (a, b, c):
            await node.session.wait_over()
            assert node.finished is not None
            assert node.finished.phase is Phase.SUCCEEDED
            assert node.view is not None
            assert node.view.phase is Phase.SUCCEEDED


@on_real_time
async def test_server_that_restarts_finds_its_members_running() -> None:
    async with GrpcStage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        await stage.server.stop(None)
        await until(lambda: "hub lost" in a.log and "hub lost" in b.log)
        await stage.serve()
        await until(lambda: "hub found" in a.log and "hub found" in b.log)
        assert (a.running, b.running) == (1, 1)
        assert not any(node.detached for node in stage.status.nodes)
        assert stage.status.round == 1


@on_real_time
async def test_node_that_vanishes_is_lost_and_the_others_go_on() -> None:
    spec = make_spec("a", "b", fewest=1, most=2, heartbeat=0.2, lease=1.0)
    async with GrpcStage(spec) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        await b.crash()
        await stage.round_is(2, a)
        assert stage.status.restart_count == 0


@on_real_time
async def test_last_words_arrive_before_a_session_closes() -> None:
    async with GrpcStage(make_spec("a", "b", fewest=1, most=2, lease=600.0)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        await b.leave()
        await stage.round_is(2, a)  # nobody had to wait for a lease


@on_real_time
async def test_refusals_cross_the_wire_as_their_own_type() -> None:
    async with GrpcStage(make_spec("a")) as stage:
        link = GrpcHubLink(f"127.0.0.1:{stage.port}")
        hello = SessionHello(run_id="no-such", incarnation=1, node_id="a", agent_uid="u", session_epoch=1)
        stream = await link.connect(hello)
        with pytest.raises(RunNotFound) as caught:
            await stream.__anext__()
        assert caught.value.facts["run_id"] == "no-such"
        await stream.close()


@on_real_time
async def test_describe_and_terminate_work_from_afar() -> None:
    async with GrpcStage(make_spec("a", "b")) as stage:
        (a,) = stage.add("a")
        link = GrpcHubLink(f"127.0.0.1:{stage.port}")
        await until(lambda: "welcome" in a.log)
        described = await link.describe(RUN)
        assert described.spec == stage.spec
        assert described.status.missing == ("b",)
        assert described.join_deadline > 0
        await link.terminate(RUN, INCARNATION, None, "enough")
        await a.session.wait_over()
        assert a.finished is not None
        assert a.finished.phase is Phase.STOPPED


@on_real_time
async def test_hub_that_is_not_there_is_an_error_with_its_address() -> None:
    link = GrpcHubLink("127.0.0.1:1")
    with pytest.raises(Unreachable) as caught:
        await link.describe(RUN)
    assert caught.value.facts["target"] == "127.0.0.1:1"


@on_real_time
async def test_garbage_in_a_stream_ends_that_stream_only() -> None:
    async with GrpcStage(make_spec("a", "b")) as stage:
        (a,) = stage.add("a")
        await until(lambda: "welcome" in a.log)
        channel = insecure_channel(f"127.0.0.1:{stage.port}")
        stub: Any = RendezvousServiceStub(channel)
        call = stub.Join()
        await call.write(pb.JoinRequest(done=pb.MemberDone(role="default", round=1)))
        code = await call.code()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        await channel.close()
        link = GrpcHubLink(f"127.0.0.1:{stage.port}")
        hello = SessionHello(run_id=RUN, incarnation=INCARNATION, node_id="b", agent_uid="u", session_epoch=1)
        stream = await link.connect(hello)
        await stream.__anext__()

        await stream.send(MemberDone(role="no-such-role", round=1))
        with pytest.raises(InvalidSpec) as caught:
            _ = [message async for message in stream]
        assert caught.value.facts["field"] == "role"
        await stream.close()
        (b,) = stage.add("b")
        b._epoch = 5
        await stage.round_is(1, a, b)
