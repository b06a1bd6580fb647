"""Health checks over HTTP as probes see them, and what hostile clients can do to them: nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import http.client
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.elastic.agent.server.health import listener
from agentd.elastic.agent.server.health.http import HttpHealthCheckServer
from agentd.elastic.agent.server.health_check_server import (
    HealthCheckPortError,
    HealthCheckServer,
    create_healthcheck_server,
)
from agentd.elastic.utils import ports
from agentd.procs.waiter import Waiter
from tests.support.waiting import wait_until

Asked = Callable[[], None]


class Served:
    """A server that runs, and how probes talk to it."""

    def __init__(self, server: HttpHealthCheckServer) -> None:
        self.server = server

    @property
    def port(self) -> int:
        return self.server.port

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((host, self.port), timeout=10)

    def get(self, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
        connection = http.client.HTTPConnection(host, self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, "/healthz")
            response = connection.getresponse()
            return response.status, response.read().decode()


@pytest.fixture(params=["thread", "waiter"])
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], float]], Served]]:
    """Both ways in which the same pump runs; in the second the test's own thread plays the agent's."""
    with contextlib.ExitStack() as stack:

        def start(callback: Callable[[], float] = time.time, timeout: float = 60) -> Served:
            if request.param == "thread":
                server = HttpHealthCheckServer(callback, 0, timeout)
                server.start()
                stack.callback(server.stop)
            else:
                server = stack.enter_context(in_agents_waiter(callback, timeout))
            return Served(server)

        yield start


@contextlib.contextmanager
def in_agents_waiter(callback: Callable[[], float], timeout: float) -> Iterator[HttpHealthCheckServer]:
    """A thread that waits in its own waiter, as an agent does, and serves health checks by the way."""
    ready, ending = threading.Event(), threading.Event()
    with Waiter() as waiter:
        server = HttpHealthCheckServer(callback, 0, timeout, waiter=waiter)

        def agent() -> None:
            server.start()
            ready.set()
            waiter.wait_until(ending.is_set, None)
            server.stop()

        thread = threading.Thread(target=agent)
        thread.start()
        assert ready.wait(10)
        try:
            yield server
        finally:
            ending.set()
            waiter.wake()
            thread.join(10)
            assert not thread.is_alive()


Serve = Callable[..., Served]


def received(client: socket.socket) -> bytes:
    """All until the server's end of file or reset."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def readable(client: socket.socket) -> bool:
    """Whether there is something to read, be it the end."""
    return bool(select.select([client], [], [], 0)[0])


# --- probes


def test_alive_is_200_and_not_alive_is_503_with_the_age_in_words(serve: Serve) -> None:
    last = [time.time()]
    served = serve(lambda: last[0], 30)
    status, text = served.get()
    assert status == 200
    assert text.startswith("alive: the last progress is ")
    assert text.endswith(" s old, the limit 30 s\n")
    last[0] = time.time() - 1000
    status, text = served.get()
    assert status == 503
    assert text.startswith("not alive: the last progress is 10"), "it may be some seconds more by now"
    last[0] = time.time()
    assert served.get()[0] == 200


def test_a_callback_that_raises_is_503_and_the_server_goes_on(serve: Serve) -> None:
    answers = iter([1 / 3])

    def callback() -> float:
        next(answers)
        raise ZeroDivisionError("of the user")

    served = serve(callback)
    assert served.get() == (503, "not alive: the callback raised ZeroDivisionError\n")
    assert served.get() == (503, "not alive: the callback raised StopIteration\n")


def test_head_has_no_body_and_other_methods_are_told_what_to_use(serve: Serve) -> None:
    served = serve()
    assert served.get("HEAD") == (200, "")
    assert served.get("POST") == (405, "ask with GET or HEAD\n")


def test_a_plain_tcp_connect_works_and_harms_nothing(serve: Serve) -> None:
    served = serve()
    for _ in range(20):
        served.connect().close()
    assert served.get()[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_serves_ipv4_and_ipv6(serve: Serve, host: str) -> None:
    assert serve().get(host=host)[0] == 200


def test_a_request_in_single_bytes_is_answered(serve: Serve) -> None:
    with serve().connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET / HTTP/1.0\r\n\r\n":
            client.send(bytes([byte]))
        assert received(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_half_closes_after_its_request_gets_its_answer(serve: Serve) -> None:
    with serve().connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert received(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_nobody_asked_for_does_not_take_the_answer_away(serve: Serve) -> None:
    with serve().connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30000)
        assert received(client).startswith(b"HTTP/1.1 200 OK\r\n")


# --- hostile clients


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), os.urandom(200) + b"\n", b"\n\nGET\n"],
    ids=["TLS hello", "random", "text"],
)
def test_garbage_is_refused_at_once_and_harms_nothing(serve: Serve, garbage: bytes) -> None:
    served = serve()
    began = time.monotonic()
    with served.connect() as client:
        client.sendall(garbage)
        assert received(client).startswith(b"HTTP/1.1 400 ")
    assert time.monotonic() - began < listener.CONNECTION_S
    assert served.get()[0] == 200


def test_an_endless_head_is_refused_and_an_endless_sender_cut_off(serve: Serve) -> None:
    served = serve()
    with served.connect() as client, pytest.raises(ConnectionError):
        client.sendall(b"x" * 40_000_000)
    assert served.get()[0] == 200


def test_resets_at_any_point_harm_nothing(serve: Serve) -> None:
    served = serve()
    for request in (b"", b"GET", b"GET / HTTP/1.1\r\n\r\n"):
        client = served.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(request)
        client.close()
    assert served.get()[0] == 200


def test_a_slow_loris_is_cut_off_after_its_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CONNECTION_S", 0.3)
    with serve().connect() as client:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            wait_until(lambda: client.send(b"G") == 0)
        assert time.monotonic() - began >= 0.25


def test_a_client_that_never_closes_is_cut_off_after_its_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "CONNECTION_S", 2.0)
    served = serve()
    idle, answered = served.connect(), served.connect()
    with idle, answered:
        answered.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert received(idle) == b""
        assert b" 200 OK" in received(answered)


def test_two_hundred_idle_connections_do_not_keep_a_probe_from_its_answer(serve: Serve) -> None:
    served = serve()
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(nonblocking_to(served.port)) for _ in range(200)]
        assert served.get()[0] == 200
        ours = len(os.listdir("/proc/self/fd")) - before - len(clients)
        assert ours <= listener.CONNECTIONS + 1


def test_two_hundred_probes_at_once_are_all_answered(serve: Serve) -> None:
    served = serve()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(200):
            clients.append(stack.enter_context(served.connect()))
            clients[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert [received(client)[:15] for client in clients] == [b"HTTP/1.1 200 OK"] * 200


@contextlib.contextmanager
def nonblocking_to(port: int) -> Iterator[socket.socket]:
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(("127.0.0.1", port)) in {0, errno.EINPROGRESS}
        yield client


def test_without_free_descriptors_it_rests_and_serves_again_when_there_are(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "RETRY_S", 0.05)
    turns = 0

    def count(_now: float) -> None:
        nonlocal turns
        turns += 1

    with Waiter() as waiter, socket.socket() as client:
        server = HttpHealthCheckServer(time.time, 0, 60, waiter=waiter)
        server.start()
        client.settimeout(10)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        waiter.add_pump(count)
        with no_free_descriptors():
            deadline = time.monotonic() + 0.3
            assert not waiter.wait_until(lambda: readable(client), deadline)
        assert turns < 30
        assert waiter.wait_until(lambda: readable(client), time.monotonic() + 10)
        assert b" 200 OK" in client.recv(1000)
        server.stop()
    assert "cannot take a connection" in caplog.text


@contextlib.contextmanager
def no_free_descriptors() -> Iterator[None]:
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- start and stop


def test_stop_frees_the_port_at_once_though_clients_are_connected() -> None:
    first = Served(HttpHealthCheckServer(time.time, 0, 60))
    first.server.start()
    with first.connect() as idle:
        assert first.get()[0] == 200
        first.server.stop()
        first.server.stop()
        again = HttpHealthCheckServer(time.time, first.port, 60)
        again.start()
        assert Served(again).get()[0] == 200
        again.stop()
        assert received(idle) == b""


def test_in_a_waiter_it_has_no_thread_and_leaves_nothing_behind_at_each_round() -> None:
    port = 0
    threads = threading.active_count()
    with Waiter() as waiter:
        fds = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            server = HttpHealthCheckServer(time.time, port, 60, waiter=waiter)
            server.start()
            server.start()
            port = server.port
            with Served(server).connect() as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert waiter.wait_until(lambda c=client: readable(c), time.monotonic() + 10)  # type: ignore[misc]
                server.stop()
                server.stop()
                assert b" 200 OK" in received(client)
            assert threading.active_count() == threads
            assert len(os.listdir("/proc/self/fd")) == fds


def test_stop_after_the_waiter_was_closed_and_stop_without_start_are_harmless() -> None:
    with Waiter() as waiter:
        server = HttpHealthCheckServer(time.time, 0, 60, waiter=waiter)
        server.stop()
        server.start()
    server.stop()
    HttpHealthCheckServer(time.time, 0, 60).stop()


def test_a_stuck_agent_answers_nothing_which_is_an_answer_too() -> None:
    with Waiter() as waiter:
        server = HttpHealthCheckServer(time.time, 0, 60, waiter=waiter)
        server.start()
        with Served(server).connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
        server.stop()


def test_a_callback_that_blocks_for_ever_neither_holds_stop_nor_the_port(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentd.elastic.agent.server.health.http.STOP_S", 0.2)
    entered, release = threading.Event(), threading.Event()

    def callback() -> float:
        entered.set()
        release.wait(60)
        return time.time()

    server = HttpHealthCheckServer(callback, 0, 60)
    server.start()
    with Served(server).connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert entered.wait(10)
        server.stop()
        assert "has not returned" in caplog.text
        again = HttpHealthCheckServer(time.time, server.port, 60)
        again.start()
        again.stop()
        release.set()
    wait_until(lambda: not any("health" in thread.name for thread in threading.enumerate()))


def test_a_process_forked_meanwhile_does_not_keep_the_port() -> None:
    server = HttpHealthCheckServer(time.time, 0, 60)
    server.start()
    program = (
        "import os, sys, time\n"
        "from agentd.elastic.agent.server.health.http import HttpHealthCheckServer\n"
        "from agentd.procs.waiter import Waiter\n"
        "waiter = Waiter()\n"
        "server = HttpHealthCheckServer(time.time, 0, 60, waiter=waiter)\n"
        "server.start()\n"
        "read, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.close(write)\n"
        "    os.read(read, 1)\n"  # until the parent has ended
        "    os._exit(0)\n"
        "server.stop()\n"
        "server.start()\n"
        "server.stop()\n"
        "print('bound again')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    server.stop()
    assert (done.returncode, done.stdout) == (0, "bound again\n"), done.stderr


# --- ports that cannot be had


@pytest.mark.parametrize(
    ("port", "cause"), [("http", "not a number"), (None, "not a number"), (-1, "65535"), (70000, "65535")]
)
def test_a_port_that_is_none_is_a_clear_error(port: int, cause: str) -> None:
    server = create_healthcheck_server(time.time, port, 60)
    with pytest.raises(HealthCheckPortError, match=cause) as caught:
        server.start()
    assert caught.value.port == port
    server.stop()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_is_a_clear_error_and_is_not_shared(family: socket.AddressFamily) -> None:
    with socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(HealthCheckPortError, match=rf"{port}: it is in use.*ss -ltnp"):
            HttpHealthCheckServer(time.time, port, 60).start()


def test_two_servers_do_not_share_a_port() -> None:
    first = HttpHealthCheckServer(time.time, 0, 60)
    first.start()
    second = HttpHealthCheckServer(time.time, first.port, 60)
    with pytest.raises(HealthCheckPortError, match="in use"):
        second.start()
    second.stop()
    assert Served(first).get()[0] == 200
    first.stop()


@pytest.mark.root
def test_a_privileged_port_is_a_clear_error() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if lowest < 2:
        pytest.skip("every port is free for all here")
    program = (
        "import os, time\n"
        "from agentd.elastic.agent.server.health_check_server import create_healthcheck_server\n"
        "server = create_healthcheck_server(time.time, 1, 60)\n"
        "os.setuid(65534)\n"
        "try:\n"
        "    server.start()\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error.cause)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import agentd.elastic.agent.server.health.http\n" + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("HealthCheckPortError this user may not bind it"), done.stderr


def test_it_serves_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ports._bound

    def without_ipv6(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, host, port)

    monkeypatch.setattr(ports, "_bound", without_ipv6)
    server: HealthCheckServer = HttpHealthCheckServer(time.time, 0, 60)
    server.start()
    socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", server.port), timeout=5)
    server.stop()
