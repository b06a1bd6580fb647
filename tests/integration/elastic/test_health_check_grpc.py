"""Health checks over grpc.health.v1, asked with the packaged stub."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from agentd.elastic.agent.server.health_check_server import (
    HealthCheckPortError,
    HealthCheckServer,
    create_healthcheck_server,
)
from agentd.procs.waiter import Waiter
from agentd.rpc import health_messages as pb
from agentd.rpc.health_check_server import GrpcHealthCheckServer

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SELF = HealthCheckRequest()


@contextlib.contextmanager
def served(callback: Callable[[], float] = time.time, timeout: float = 60) -> Iterator[GrpcHealthCheckServer]:
    server = GrpcHealthCheckServer(callback, 0, timeout)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def stub_for(server: HealthCheckServer, host: str = "127.0.0.1") -> Iterator[Any]:
    with grpc.insecure_channel(f"{host}:{server.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield HealthStub(channel)


def check(stub: Any) -> int:
    status: int = stub.Check(SELF, timeout=10).status
    return status


def test_the_protocol_grpc_is_found_by_its_name() -> None:
    server = create_healthcheck_server(time.time, 0, 60, protocol="grpc")
    assert isinstance(server, GrpcHealthCheckServer)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_check_tells_serving_while_alive_and_not_serving_when_not(host: str) -> None:
    with served() as server, stub_for(server, host) as stub:
        assert check(stub) == SERVING
    with served(lambda: 0.0) as server, stub_for(server, host) as stub:
        assert check(stub) == NOT_SERVING


def test_watch_pushes_each_change_once() -> None:
    last = [time.time() + 1000]
    with served(lambda: last[0]) as server, stub_for(server) as stub:
        changes = stub.Watch(SELF, timeout=30)
        seen = [next(changes).status]
        for value in (0.0, time.time() + 2000, 1.0):
            last[0] = value
            seen.append(next(changes).status)
        changes.cancel()
    assert seen == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]


def test_a_hundred_watchers_starve_nobody() -> None:
    last = [time.time() + 1000]
    with served(lambda: last[0]) as server, stub_for(server) as stub:
        watchers = [stub.Watch(SELF, timeout=60) for _ in range(100)]
        assert [next(watcher).status for watcher in watchers] == [SERVING] * 100
        assert check(stub) == SERVING
        last[0] = 0.0
        assert [next(watcher).status for watcher in watchers] == [NOT_SERVING] * 100


def test_list_tells_the_one_service_there_is() -> None:
    with served() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        ask = channel.unary_unary(
            f"/{pb.SERVICE}/List",
            request_serializer=pb.ListRequest.SerializeToString,
            response_deserializer=pb.ListResponse.FromString,
        )
        statuses = ask(pb.ListRequest(), timeout=10).statuses
        assert {name: entry.status for name, entry in statuses.items()} == {"": SERVING}


def test_an_unknown_service_is_not_found_by_check_and_unknown_to_watch() -> None:
    with served() as server, stub_for(server) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(HealthCheckRequest(service="nobody"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(HealthCheckRequest(service="nobody"), timeout=10)
        assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


def test_a_callback_that_raises_is_not_serving() -> None:
    def callback() -> float:
        raise ZeroDivisionError

    with served(callback) as server, stub_for(server) as stub:
        assert check(stub) == NOT_SERVING


def test_a_callback_that_blocks_for_ever_is_not_serving_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentd.rpc.health_check_server.STOP_S", 0.5)
    release, asked = threading.Event(), threading.Event()

    def callback() -> float:
        if asked.is_set():
            release.wait(60)
        asked.set()
        return time.time()

    with served(callback, timeout=2) as server, stub_for(server) as stub:
        changes = stub.Watch(SELF, timeout=60)
        assert next(changes).status == SERVING
        while check(stub) == SERVING:
            pass
        assert next(changes).status == NOT_SERVING
        server.stop()
    release.set()


def test_with_a_waiter_the_callback_is_asked_in_its_thread_and_its_silence_is_not_serving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentd.rpc.health_check_server.LOOK_S", 0.05)
    asked_in = set()

    def callback() -> float:
        asked_in.add(threading.current_thread())
        return time.time()

    with Waiter() as waiter:
        server = GrpcHealthCheckServer(callback, 0, 2, waiter=waiter)
        server.start()
        with stub_for(server) as stub:
            ends = time.monotonic() + 2.2
            while time.monotonic() < ends:
                waiter.wait(ends)
                assert check(stub) == SERVING
            changes = stub.Watch(SELF, timeout=60)
            assert next(changes).status == SERVING
            assert next(changes).status == NOT_SERVING  # nobody waits in the waiter now
            waiter.wait(time.monotonic())
            assert check(stub) == SERVING
            changes.cancel()
        server.stop()
    assert asked_in == {threading.current_thread()}


def test_stop_ends_watchers_and_frees_the_port_at_once() -> None:
    port = 0
    for _ in range(3):
        server = GrpcHealthCheckServer(time.time, port, 60)
        server.start()
        server.start()
        port = server.port
        with stub_for(server) as stub:
            changes = stub.Watch(SELF, timeout=30)
            assert next(changes).status == SERVING
            server.stop()
            server.stop()
            with pytest.raises(grpc.RpcError):
                next(changes)
    GrpcHealthCheckServer(time.time, 0, 60).stop()


def test_a_port_that_cannot_be_had_is_a_clear_error_and_leaves_no_thread() -> None:
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = GrpcHealthCheckServer(time.time, other.getsockname()[1], 60)
        with pytest.raises(HealthCheckPortError, match="it is in use"):
            server.start()
    with pytest.raises(HealthCheckPortError, match="65535"):
        GrpcHealthCheckServer(time.time, 99999, 60).start()
    assert threading.active_count() == threads


def test_garbage_harms_nothing() -> None:
    with served() as server, stub_for(server) as stub:
        for garbage in (b"\x16\x03\x01" + bytes(300), os.urandom(500), b"GET / HTTP/1.1\r\n\r\n", b""):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                client.sendall(garbage)
        assert check(stub) == SERVING
