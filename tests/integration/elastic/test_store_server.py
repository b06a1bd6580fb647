"""The TCP store's server bears what comes over the network, and its clients bear what becomes of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from agentd.elastic.utils import store_wire
from agentd.elastic.utils.store import StoreError, StoreTimeout
from agentd.elastic.utils.store_server import StoreServer
from agentd.elastic.utils.tcp_store import StoreConnectionError, TcpStore
from tests.support.waiting import wait_until

SECOND = timedelta(seconds=1)


@pytest.fixture
def server() -> Iterator[StoreServer]:
    server = StoreServer("localhost", patience_s=60.0, max_clients=4)
    yield server
    server.close()


@pytest.fixture
def hasty() -> Iterator[StoreServer]:
    """One that bears silence for a moment only; a client of its own must not be late either."""
    server = StoreServer("localhost", patience_s=2.0, max_clients=4)
    yield server
    server.close()


def _dial(server: StoreServer) -> socket.socket:
    return socket.create_connection(("localhost", server.port), 10)


def _greeted(server: StoreServer) -> socket.socket:
    connection = _dial(server)
    connection.sendall(store_wire.MAGIC + os.urandom(store_wire.ID_BYTES))
    assert connection.recv(100).startswith(store_wire.MAGIC)
    return connection


def _is_hung_up(connection: socket.socket) -> bool:
    with connection:
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass
        return True


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        store_wire.MAGIC + bytes(16) + b"\xff\xff\xff\xff",
        store_wire.MAGIC + bytes(16) + b"\0\0\0\x05\0\0\0\x09x",
        store_wire.MAGIC + bytes(16) + store_wire.pack([b"set"]),
        store_wire.MAGIC + bytes(16) + store_wire.pack([b"wait", b"1", b"soon", b"key"]),
        store_wire.MAGIC + b"half a hello",
        b"",
    ],
    ids=["http", "huge", "lies about a length", "no number", "no time", "stops halfway", "says nothing"],
)
def test_who_sends_what_is_no_request_is_hung_up_on_and_nobody_else(
    hasty: StoreServer, garbage: bytes
) -> None:
    with TcpStore("localhost", hasty.port) as store:
        stranger = _dial(hasty)
        stranger.sendall(garbage)
        assert _is_hung_up(stranger)
        store.set("still", "there")
        assert store.get("still") == b"there"


def test_an_unknown_operation_is_refused_and_the_connection_serves_on(server: StoreServer) -> None:
    with _greeted(server) as connection:
        for operation in (b"\xff", b"set", b"add"):
            connection.sendall(store_wire.pack([operation, b"1", b"key", b"a", b"b"]))
            assert store_wire.unpack(connection.recv(4096))[0] == store_wire.REFUSED


def test_who_does_not_read_is_dropped_and_holds_up_nobody(hasty: StoreServer) -> None:
    with TcpStore("localhost", hasty.port) as store:
        store.set("big", bytes(15 << 20))
        deaf = _greeted(hasty)
        deaf.sendall(store_wire.pack([b"get", b"1", b"big"]))
        store.set("other", "x")
        wait_until(lambda: hasty.clients == 1, what="the deaf one's end")
        deaf.close()


def test_one_client_too_many_is_refused_and_may_come_when_another_has_gone(server: StoreServer) -> None:
    others = [_greeted(server) for _ in range(4)]
    assert _is_hung_up(_dial(server))
    others.pop().close()
    with TcpStore("localhost", server.port, timeout=timedelta(seconds=20)) as store:
        store.set("in", "time")
    for other in others:
        other.close()


def test_a_client_connects_again_and_what_it_asked_is_done_once(server: StoreServer) -> None:
    with TcpStore("localhost", server.port) as store:
        assert store.add("n", 1) == 1
        assert store._socket is not None
        store._socket.shutdown(socket.SHUT_RDWR)
        assert store.add("n", 1) == 2
        # The answer was lost: the same request comes again.
        store._drop()
        store._sequence -= 1
        assert store.add("n", 1) == 2
        assert store.add("n", 1) == 3


def test_a_server_that_began_anew_is_not_taken_for_the_old_one() -> None:
    first = StoreServer("localhost")
    with TcpStore("localhost", first.port) as store:
        store.set("a", "1")
        first.close()
        second = StoreServer("localhost", first.port)
        try:
            with pytest.raises(StoreConnectionError, match="began anew: all that was written there is lost"):
                store.check(["a"])
        finally:
            second.close()


def test_without_a_server_the_error_names_the_address_and_the_next_step() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(
            StoreConnectionError, match=rf"localhost:{port} cannot be reached.*rank 0's agent"
        ):
            TcpStore("localhost", port, timeout=timedelta(milliseconds=100))


def test_a_taken_port_is_an_os_error_and_leaves_nothing() -> None:
    with TcpStore("localhost", 0, is_master=True) as store, pytest.raises(OSError, match="in use"):
        TcpStore("localhost", store.port, is_master=True)


def test_members_that_do_not_come_are_counted() -> None:
    with pytest.raises(StoreTimeout, match="1 of 2 members"):
        TcpStore("localhost", 0, world_size=2, is_master=True, timeout=timedelta(seconds=1))


def test_a_value_too_long_for_a_frame_is_refused_by_name(server: StoreServer) -> None:
    with TcpStore("localhost", server.port) as store:
        with pytest.raises(StoreError, match="too much for one request"):
            store.set("k", bytes(17 << 20))
        for _ in range(2):
            store.append("k", bytes(9 << 20))
        with pytest.raises(StoreError, match="more than a frame takes"):
            store.get("k")
        store.set("k", "fine")


def test_closing_ends_a_wait_of_another_thread() -> None:
    store = TcpStore("localhost", 0, is_master=True)
    waits = threading.Thread(target=_wait_in_vain, args=(store,))
    waits.start()
    store.close()
    waits.join(20)
    assert not waits.is_alive()


def test_many_wait_for_one_key_and_one_for_many(server: StoreServer) -> None:
    found: list[bytes] = []

    def wait() -> None:
        with TcpStore("localhost", server.port, timeout=timedelta(seconds=20)) as store:
            found.append(store.multi_get(["a", "b", "c"])[2])

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    with TcpStore("localhost", server.port, timeout=timedelta(seconds=20)) as store:
        for key in ("c", "a", "b"):
            store.set(key, key)
    for thread in threads:
        thread.join()
    assert found == [b"c"] * 3


def test_a_client_that_dies_while_it_waits_is_forgotten(server: StoreServer) -> None:
    dying = _greeted(server)
    dying.sendall(store_wire.pack([b"wait", b"1", b"9999", b"never"]))
    wait_until(lambda: server._parked, what="the wait")
    dying.close()
    wait_until(lambda: server.clients == 0, what="the end of the dead one")
    assert not server._parked


def test_a_signal_that_raises_in_a_wait_does_not_spoil_the_next_answer(server: StoreServer) -> None:
    class Enough(Exception):
        pass

    def enough(_signum: int, _frame: object) -> None:
        raise Enough

    former = signal.signal(signal.SIGUSR1, enough)
    try:
        with TcpStore("localhost", server.port) as store:
            store.set("a", "1")
            killer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1])

            def wait_until_killed() -> None:
                killer.start()
                store.wait(["never"], timedelta(seconds=60))

            with pytest.raises(Enough):
                wait_until_killed()
            killer.join()
            assert store.get("a") == b"1"
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_server_for_other_machines_listens_on_all_addresses() -> None:
    with TcpStore("0.0.0.0", 0, is_master=True) as store:
        for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            with TcpStore(host, store.port) as other:
                other.add("here", 1)
        assert int(store.get("here")) >= 1


def _wait_in_vain(store: TcpStore) -> None:
    with pytest.raises(StoreConnectionError, match="was closed here"):
        store.wait(["never"], timedelta(seconds=60))


def test_a_port_where_somebody_listens_and_says_nothing_takes_no_longer_than_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(StoreConnectionError, match="timed out"):
            TcpStore("localhost", silent.getsockname()[1], timeout=timedelta(seconds=0.2))
        assert time.monotonic() - began < 30, "the store's own timeout is 300 s"


def test_a_close_while_clients_come_never_writes_into_a_descriptor_that_is_gone(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, alive = os.write, []

    def write_late(fd: int, data: bytes) -> int:
        """Write once the server had another client to wake for, and time to end if it is to."""
        with _dial(server):
            server._thread.join(0.3)
        alive.append(server._thread.is_alive())
        return real_write(fd, data)

    monkeypatch.setattr("agentd.elastic.utils.store_server.os.write", write_late)
    server.close()
    assert alive == [True]
    assert not server._thread.is_alive()
