"""What strangers, floods and vanishing clients do to agentd: nothing that its other callers would notice."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from agentd.api.errors import InvalidSpec, LimitExceeded, RunNotFound
from agentd.api.errwire import from_rpc_error
from agentd.v1 import agent_service_pb2 as pb
from agentd.v1 import rendezvous_service_pb2 as hub_pb
from agentd.v1.rendezvous_service_pb2_grpc import RendezvousServiceStub
from tests.integration.daemon.rig import (
    CALL_S,
    Daemon,
    a_run,
    calling,
    health_of,
    is_serving,
    running,
    script,
)
from tests.support.fleet import count_descriptors, count_threads
from tests.support.waiting import wait_until


def still_well(daemon: Daemon) -> None:
    """It answers a new caller and has logged no fault."""
    with health_of(daemon.targets[0]) as health:
        assert is_serving(health)
    assert [event for event in daemon.events() if event["level"] == "error"] == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(65536),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff" * 99,
    ],
    ids=["zeros", "http1", "noise", "broken-http2"],
)
def test_garbage_on_the_port_harms_nobody(folder: Path, garbage: bytes) -> None:
    with running(folder) as daemon:
        host, _, port = daemon.targets[0].rpartition(":")
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=CALL_S) as stranger:
                stranger.sendall(garbage)
        still_well(daemon)


def test_a_huge_message_is_refused_by_name(folder: Path) -> None:
    with running(folder) as daemon:
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(daemon.targets[0], options=options) as channel:
            request = a_run("r", script(folder, ""))
            request.spec.roles[0].command.arguments.append("x" * (10 * 1024 * 1024))
            call: Any = channel.unary_unary("/agentd.v1.AgentService/Run")
            with pytest.raises(grpc.RpcError) as caught:
                call(request.SerializeToString(), timeout=CALL_S)
        assert isinstance(from_rpc_error(caught.value, "n"), LimitExceeded)  # type: ignore[arg-type]
        still_well(daemon)


def test_two_hundred_idle_watches_cost_no_threads_and_status_still_answers(folder: Path) -> None:
    with running(folder) as daemon, calling(daemon.targets[0]) as agent:
        agent.Status(pb.StatusRequest(), timeout=CALL_S)
        before = count_threads(daemon.process.pid)
        watches = [agent.Watch(pb.WatchRequest(), timeout=60) for _ in range(200)]
        with health_of(daemon.targets[0]) as health:
            watches += [
                health.Watch(health_pb2.HealthCheckRequest(service="agentd.run/x"), timeout=60)
                for _ in range(50)
            ]
            for watch in watches[200:]:
                assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            for _ in range(20):
                agent.Status(pb.StatusRequest(), timeout=CALL_S)
            assert count_threads(daemon.process.pid) <= before + 4
            for watch in watches:
                watch.cancel()
        still_well(daemon)


def test_clients_that_vanish_mid_stream_leave_nothing_behind(folder: Path) -> None:
    program = script(
        folder, "import time\nfor n in range(10000):\n    print(n, flush=True)\n    time.sleep(0.01)\n"
    )
    with running(folder) as daemon, calling(daemon.targets[0]) as agent:
        agent.Run(a_run("r", program), timeout=CALL_S)
        wait_until(
            lambda: any(chunk.chunk.data for chunk in agent.Logs(pb.LogsRequest(run_id="r"), timeout=CALL_S))
        )
        before = count_descriptors(daemon.process.pid)
        for _ in range(20):
            with calling(daemon.targets[0]) as stranger:
                next(stranger.Watch(pb.WatchRequest(), timeout=60))
                next(stranger.Logs(pb.LogsRequest(run_id="r", follow=True), timeout=60))
        wait_until(lambda: count_descriptors(daemon.process.pid) <= before + 3)
        still_well(daemon)


def test_a_caller_who_does_not_read_holds_up_no_other(folder: Path) -> None:
    program = script(
        folder, "import time\nprint(('x' * 99 + '\\n') * 200_000, flush=True)\ntime.sleep(600)\n"
    )
    with running(folder) as daemon, calling(daemon.targets[0]) as agent:
        agent.Run(a_run("r", program), timeout=CALL_S)
        stuck = [agent.Logs(pb.LogsRequest(run_id="r", follow=True), timeout=60) for _ in range(10)]
        got = 0
        for answer in agent.Logs(pb.LogsRequest(run_id="r", follow=True), timeout=60):
            got += len(answer.chunk.data)
            if got >= 20_000_000:
                break
        agent.Status(pb.StatusRequest(), timeout=CALL_S)
        for call in stuck:
            call.cancel()
        still_well(daemon)


def test_many_callers_at_once_get_their_answers(folder: Path) -> None:
    failures: list[Exception] = []

    def ask() -> None:
        try:
            with calling(daemon.targets[0]) as agent:
                for _ in range(20):
                    agent.GetNode(pb.GetNodeRequest(), timeout=CALL_S)
        except grpc.RpcError as error:
            failures.append(error)

    with running(folder) as daemon:
        askers = [threading.Thread(target=ask) for _ in range(16)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(CALL_S * 2)
        assert failures == []


@pytest.mark.parametrize("method", ["Watch", "Logs"])
def test_streams_of_an_unknown_run_end_with_its_name(folder: Path, method: str) -> None:
    request = pb.WatchRequest(run_id="none") if method == "Watch" else pb.LogsRequest(run_id="none")
    with running(folder) as daemon, calling(daemon.targets[0]) as agent:
        with pytest.raises(grpc.RpcError) as caught:
            list(getattr(agent, method)(request, timeout=CALL_S))
        error = from_rpc_error(caught.value, "n")  # type: ignore[arg-type]
        assert isinstance(error, RunNotFound)
        assert error.facts == {"run_id": "none", "node": "n"}


def test_a_session_that_does_not_say_hello_is_told_so(folder: Path) -> None:
    with running(folder) as daemon, grpc.insecure_channel(daemon.targets[0]) as channel:
        stub: Any = RendezvousServiceStub(channel)
        silent = [hub_pb.JoinRequest(heartbeat=hub_pb.SessionHeartbeat(sequence=1))]
        for messages in ([], silent):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Join(iter(messages), timeout=CALL_S))
            assert isinstance(from_rpc_error(caught.value, "n"), InvalidSpec)  # type: ignore[arg-type]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Describe(hub_pb.DescribeRequest(run_id="none"), timeout=CALL_S)
        assert isinstance(from_rpc_error(caught.value, "n"), RunNotFound)  # type: ignore[arg-type]
        still_well(daemon)
