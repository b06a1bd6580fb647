"""The listening socket of health checks, inside a waiter. Nothing a client does delays or harms its thread.

Every turn does a bounded amount of work on non-blocking sockets; connections are bounded in number, in time
and in bytes, and those that idle make room for those that ask.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from collections.abc import Callable

from agentd.elastic.agent.server.health.answers import HEAD_LIMIT, answer_to
from agentd.elastic.agent.server.health_check_server import HealthCheckPortError, Liveness, checked_port
from agentd.elastic.utils.ports import listening_everywhere
from agentd.procs.waiter import Waiter

log = logging.getLogger(__name__)

CONNECTIONS = 64
"""Open at once; more wait in the kernel's queue."""
CONNECTION_S = 5.0
"""The life of a connection, its farewell included."""
HEAD_START_S = 0.2
"""How long a connection may keep others waiting before it has asked. A probe asks as soon as it is there."""
ACCEPTS_PER_TURN = 16
RECEIVE_BYTES = 4096
DISCARD_LIMIT = 65536
"""Bytes that a client may still send after it was answered."""
RETRY_S = 1.0
"""Until the next attempt to accept after the process ran out of descriptors."""


def open_listener(port: object) -> socket.socket:
    """A listening socket for IPv4 and, where the machine has it, IPv6. Raises `HealthCheckPortError`."""
    number = checked_port(port)
    try:
        listener = listening_everywhere(number)
    except OSError as error:
        raise HealthCheckPortError(port, _cause(error, number)) from error
    listener.setblocking(False)
    return listener


def _cause(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"it is in use; `ss -ltnp 'sport = :{port}'` tells by whom"
    if error.errno == errno.EACCES:
        return "this user may not bind it: net.ipv4.ip_unprivileged_port_start keeps low ports for root"
    return error.strerror or str(error)


class _Connection:
    """One client."""

    __slots__ = ("answered", "discarded", "received", "since", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.received = b""
        self.since = math.inf
        """When the first pump after its coming saw it, on the waiter's clock."""
        self.answered = False
        self.discarded = 0


class HealthSocket:
    """Answers health checks on a listener, which it owns, from inside a waiter."""

    def __init__(self, listener: socket.socket, liveness: Callable[[], Liveness], waiter: Waiter) -> None:
        self._listener = listener
        self._liveness = liveness
        self._waiter = waiter
        # In the order in which they came, which is also the order in which their time is up.
        self._connections: dict[_Connection, None] = {}
        self._accepting = False
        self._retry_at: float | None = None
        self._out_of_descriptors = False
        waiter.add_pump(self._pump)
        self._accept_again()

    def close(self) -> None:
        """Close every socket and leave the waiter. May be called again."""
        self._waiter.remove_pump(self._pump)
        self._pause()
        silence(self._listener)
        self._listener.close()
        for connection in list(self._connections):
            self._end(connection)

    # --- time

    def _pump(self, now: float) -> float | None:
        for connection in list(self._connections):
            connection.since = min(connection.since, now)
            if now >= connection.since + CONNECTION_S:
                self._end(connection)
        wishes = [self._resume(now)]
        oldest = next(iter(self._connections), None)
        if oldest is not None:
            wishes.append(oldest.since + CONNECTION_S)
        return min((wish for wish in wishes if wish is not None), default=None)

    def _resume(self, now: float) -> float | None:
        """Accept again if it was paused and can go on; else when to see about it."""
        if self._accepting:
            return None
        if self._out_of_descriptors:
            self._retry_at = now + RETRY_S if self._retry_at is None else self._retry_at
            if now < self._retry_at:
                return self._retry_at
        elif len(self._connections) >= CONNECTIONS:
            return self._make_room(now)
        self._accept_again()
        return None

    def _make_room(self, now: float) -> float | None:
        """End those that have been answered or have had their head start; else tell when the next has."""
        for connection in list(self._connections):
            if connection.answered or now >= connection.since + HEAD_START_S:
                self._end(connection)
        if len(self._connections) < CONNECTIONS:
            self._accept_again()
            return None
        return next(iter(self._connections)).since + HEAD_START_S

    # --- accepting

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if len(self._connections) >= CONNECTIONS:
                self._pause()
                return
            try:
                accepted, _address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Most likely no descriptor is free. The client stays in the queue, so this would spin.
                if error.errno != errno.EINVAL:  # it is shut down, and will soon be closed
                    log.warning("health check: cannot take a connection: %s", error)
                self._out_of_descriptors = True
                self._pause()
                return
            self._take(accepted)

    def _take(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        connection = _Connection(accepted)
        self._connections[connection] = None
        self._waiter.add(accepted, lambda: self._read(connection))
        self._read(connection)  # the request is mostly there already

    def _accept_again(self) -> None:
        self._accepting, self._out_of_descriptors, self._retry_at = True, False, None
        self._waiter.add(self._listener, self._accept)

    def _pause(self) -> None:
        self._accepting = False
        self._waiter.remove(self._listener)

    # --- one client

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(connection)
        elif connection.answered:
            connection.discarded += len(data)
            if connection.discarded > DISCARD_LIMIT:
                self._end(connection)
        else:
            connection.received += data
            self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        answer = answer_to(connection.received[: HEAD_LIMIT + 1], self._liveness)
        if answer is None:
            return
        connection.answered, connection.received = True, b""
        try:
            sent = connection.socket.send(answer)
            # The client closes next. Were we to close first, bytes still on their way to us would make the
            # kernel take the answer back.
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            sent = 0
        if sent < len(answer):  # the empty buffer of a new socket takes it whole
            self._end(connection)

    def _end(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        self._waiter.remove(connection.socket)
        silence(connection.socket)
        connection.socket.close()


def silence(sock: socket.socket) -> None:
    """End it for every process that shares it: one forked meanwhile would keep the port and the client."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
