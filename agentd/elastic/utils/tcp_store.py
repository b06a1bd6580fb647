"""`TcpStore`: a store for agents on many machines, without torch. The process with rank 0 serves it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from agentd.api.targets import Target
from agentd.elastic.utils import store_wire
from agentd.elastic.utils.store import KeyValueStore, StoreError, StoreTimeout, pause, poll
from agentd.elastic.utils.store_server import StoreServer, make_lively
from agentd.elastic.utils.store_wire import BadFrame
from agentd.elastic.utils.stores import DEFAULT_TIMEOUT, BaseStore
from agentd.procs.waiter import Waiter

__all__ = ["StoreConnectionError", "TcpStore"]

PATIENCE_S: Final = 10.0
CONNECT_S: Final = 2.0
"""One try to connect."""
MOMENT_S: Final = 0.05
"""The least that any try has."""
WAIT_SLICE_S: Final = 0.5
"""A wait is asked for in such pieces: other threads get their turn, and a dead server is noticed."""
FIRST_PAUSE_S: Final = 0.02
LAST_PAUSE_S: Final = 0.5
MEMBERS_KEY: Final = "agentd/store/members"


class StoreConnectionError(StoreError, ConnectionError):
    """The store's server cannot be reached, or is not the one it was."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"the store at {Target(host=host, port=port)} {why}")
        self.host = host
        """The machine where the server should be."""
        self.port = port
        """The port where it should listen."""


class TcpStore(BaseStore):
    """A `KeyValueStore` on a server; the first arguments are those of torch's TCPStore.

    Any number of threads may use it; they take turns. A broken connection is made again, and what was asked
    meanwhile is done once.
    """

    def __init__(
        self,
        host_name: str,
        port: int,
        world_size: int | None = None,
        is_master: bool = False,
        timeout: timedelta = DEFAULT_TIMEOUT,
        wait_for_workers: bool = True,
        *,
        patience: float = PATIENCE_S,
        waiter: Waiter | None = None,
    ) -> None:
        """Connect, serving the store first if `is_master`; `port` 0 is a free one then.

        With `world_size` and `wait_for_workers` it waits for so many to be connected. Both waits take
        `timeout` at most, which is also the default of the store's blocking methods; a `waiter` is served
        between two tries. Later a server that does not answer for `patience` seconds is asked again over a
        new connection, and one that is away for so long is an error.

        Raises OSError if the port to serve on is taken, `StoreConnectionError` when there is no server,
        `StoreTimeout` when not all come.
        """
        super().__init__(timeout)
        self._patience_s = patience
        self._name = os.urandom(store_wire.ID_BYTES)
        self._server_name = b""
        self._sequence = 0
        self._lock = threading.Lock()  # one request at a time
        self._socket: socket.socket | None = None
        self._closed = False
        self._server = StoreServer(host_name, port) if is_master else None
        self.host = host_name
        """The server's host."""
        self.port: int = port if self._server is None else self._server.port
        """The server's port."""
        try:
            self._connect_until(time.monotonic() + timeout.total_seconds(), waiter)
            if world_size is not None and wait_for_workers:
                self._wait_for_members(world_size, waiter)
        except BaseException:
            self.close()
            raise

    def close(self, linger_s: float = 0.0) -> None:
        """Give the connection back, and end the server if it is ours. Waits of other threads end at once.

        A server first waits for `linger_s` seconds at most until the other clients have gone: they may be
        about to read the last they need.
        """
        self._closed = True
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop()
        server = self._server
        if server is not None:
            poll(lambda: not server.clients, linger_s, None)
            server.close()

    def hurried(self, patience: float) -> KeyValueStore:
        """This store, for one who has more to attend to: no answer in `patience` seconds is an error.

        It speaks over the same connection, and the time to make that anew counts. Its `wait`, and what waits
        for a value, are those of this store.
        """
        return _HurriedStore(self, patience)

    def __enter__(self) -> TcpStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, operation: str, *fields: bytes) -> list[bytes]:
        return _granted(self._exchange(operation, fields, self._patience_s))

    def _wait(self, keys: Sequence[bytes], deadline: float) -> bool:
        while True:
            left = max(0.0, deadline - time.monotonic())
            piece = min(left, WAIT_SLICE_S)
            fields = (b"%d" % int(piece * 1000), *keys)
            if self._exchange(store_wire.WAIT, fields, piece + self._patience_s)[0] == store_wire.DONE:
                return True
            if left <= 0:
                return False
            # A lock is not fair: without it the next piece begins before anybody else's turn.
            time.sleep(0.001)

    def _exchange(self, operation: str, fields: Sequence[bytes], patience_s: float) -> list[bytes]:
        """Ask until there is an answer, over new connections if need be."""
        with self._lock:
            self._sequence += 1
            frame = self._framed([operation.encode(), b"%d" % self._sequence, *fields])
            gives_up_at: float | None = None
            while True:
                try:
                    return self._exchange_once(frame, patience_s)
                except (OSError, BadFrame) as error:
                    if isinstance(error, StoreError):
                        raise
                    gives_up_at = gives_up_at or time.monotonic() + self._patience_s
                    if time.monotonic() >= gives_up_at:
                        raise self._error(f"went away: {error}") from error
                    pause(FIRST_PAUSE_S, None)

    def _exchange_hurried(self, operation: str, fields: Sequence[bytes], patience_s: float) -> list[bytes]:
        """Ask for `patience_s` in all; over a new connection if the old one turns out to be broken."""
        deadline = time.monotonic() + patience_s
        if not self._lock.acquire(timeout=patience_s):
            raise self._error(f"does not answer another thread, within {patience_s:g} s")
        try:
            self._sequence += 1
            frame = self._framed([operation.encode(), b"%d" % self._sequence, *fields])
            while True:
                made_anew = self._socket is None
                try:
                    if made_anew and not self._closed:
                        self._socket = self._connected(max(MOMENT_S, deadline - time.monotonic()))
                    return self._exchange_once(frame, max(MOMENT_S, deadline - time.monotonic()))
                except (OSError, BadFrame) as error:
                    if isinstance(error, StoreError):
                        raise
                    if made_anew or time.monotonic() >= deadline:
                        raise self._error(f"does not answer: {error}") from error
        finally:
            self._lock.release()

    def _exchange_once(self, frame: bytes, patience_s: float) -> list[bytes]:
        if self._closed:
            raise self._error("was closed here")
        if self._socket is None:
            self._connect_until(time.monotonic() + self._patience_s, None)
        connection = self._socket
        assert connection is not None
        try:
            connection.settimeout(patience_s)
            connection.sendall(frame)
            return store_wire.unpack(_received_frame(connection, time.monotonic() + patience_s))
        except BaseException:
            # Also when a signal handler raises: the answer to this would be taken for that to the next.
            self._drop()
            raise

    def _framed(self, fields: Sequence[bytes]) -> bytes:
        try:
            return store_wire.pack(fields)
        except BadFrame as error:
            raise StoreError(f"too much for one request to the store: {error}") from error

    def _connect_until(self, deadline: float, waiter: Waiter | None) -> None:
        interval = FIRST_PAUSE_S
        while True:
            left = deadline - time.monotonic()
            try:
                self._socket = self._connected(max(MOMENT_S, min(CONNECT_S, left)))
                return
            except OSError as error:
                if isinstance(error, StoreError):
                    raise
                if left <= 0 or self._closed:
                    raise self._error(
                        f"cannot be reached: {error}. Is rank 0's agent running there, and the port open?"
                    ) from error
            pause(min(interval, max(left, 0.0)), waiter)
            interval = min(interval * 2, LAST_PAUSE_S)

    def _connected(self, timeout_s: float) -> socket.socket:
        deadline = time.monotonic() + timeout_s
        connection = socket.create_connection((self.host, self.port), timeout_s)
        try:
            make_lively(connection)
            connection.sendall(store_wire.MAGIC + self._name)
            hello = _received(connection, store_wire.HELLO_BYTES, deadline)
            if not hello.startswith(store_wire.MAGIC):
                raise self._error("is no store of agentd: something else listens there")
            server = hello[len(store_wire.MAGIC) :]
            if self._server_name not in (b"", server):
                raise self._error("began anew: all that was written there is lost")
            self._server_name = server
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _wait_for_members(self, world_size: int, waiter: Waiter | None) -> None:
        self.add(MEMBERS_KEY, 1)
        timeout_s = self._timeout.total_seconds()
        if not poll(lambda: self.add(MEMBERS_KEY, 0) >= world_size, timeout_s, waiter):
            here = self.add(MEMBERS_KEY, 0)
            where = Target(host=self.host, port=self.port)
            raise StoreTimeout(f"{here} of {world_size} members of {where}", timeout_s)

    def _error(self, why: str) -> StoreConnectionError:
        return StoreConnectionError(self.host, self.port, why)


class _HurriedStore(BaseStore):
    """See `TcpStore.hurried`."""

    def __init__(self, store: TcpStore, patience_s: float) -> None:
        super().__init__(store.timeout)
        self._store = store
        self._patience_s = patience_s

    def _ask(self, operation: str, *fields: bytes) -> list[bytes]:
        return _granted(self._store._exchange_hurried(operation, fields, self._patience_s))

    def _wait(self, keys: Sequence[bytes], deadline: float) -> bool:
        return self._store._wait(keys, deadline)


def _granted(reply: list[bytes]) -> list[bytes]:
    status, *answer = reply
    if status == store_wire.DONE:
        return answer
    raise StoreError(b"".join(answer).decode(errors="replace"))


def _received_frame(connection: socket.socket, deadline: float) -> bytes:
    start = _received(connection, 4, deadline)
    size = store_wire.frame_size(start)
    assert size is not None
    return start + _received(connection, size - len(start), deadline)


def _received(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer")
        connection.settimeout(left)
        piece = connection.recv(min(size - len(data), 1 << 16))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        data += piece
    return bytes(data)
