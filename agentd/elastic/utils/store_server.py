"""The server of `TcpStore`: one thread, any number of clients, of which none can hold up or harm another.

A client that sends garbage, stops in the middle of a frame, does not read its answers or is one too many
loses its connection. There is no secret: whoever reaches the port can read and write, as with torch's store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections import OrderedDict
from typing import Final

from agentd.elastic.utils import keyvalues, store_wire
from agentd.elastic.utils.keyvalues import KeyValues
from agentd.elastic.utils.ports import BACKLOG, listening_everywhere
from agentd.elastic.utils.store import StoreError
from agentd.elastic.utils.store_wire import BadFrame

__all__ = ["StoreServer"]

PATIENCE_S: Final = 30.0
"""So long a client may take for the rest of a frame, or to read its answer."""
MAX_CLIENTS: Final = 4096
REMEMBERED_CLIENTS: Final = 2 * MAX_CLIENTS
CHUNK_BYTES: Final = 1 << 16
CLOSE_S: Final = 5.0
SCAN_S: Final = 1.0
LOOPBACK: Final = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}
ONCE: Final = keyvalues.CHANGES | {keyvalues.DELETE}
"""Operations that must not be done twice when a client asks again."""

_log = logging.getLogger(__name__)


class StoreServer:
    """Serves one store until it is closed."""

    def __init__(
        self, host: str, port: int = 0, *, patience_s: float = PATIENCE_S, max_clients: int = MAX_CLIENTS
    ) -> None:
        """Listen on `port`, 0 for a free one: on the loopback if `host` is it, else on all addresses.

        Raises OSError if the port is taken.
        """
        self._patience_s = patience_s
        self._max_clients = max_clients
        self._values = KeyValues()
        self._id = os.urandom(store_wire.ID_BYTES)
        self._answered: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()
        """By client: the last request that must not be done twice, and its answer."""
        self._clients: set[_Client] = set()
        self._parked: dict[bytes, set[_Client]] = {}
        """Clients that wait, by one key that each of them misses."""
        self._listener = _listening(host, port)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        """The port it listens on."""
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._listen_again_at: float | None = None
        self._closing = False
        self._next_scan = 0.0
        self._thread = threading.Thread(target=self._serve, name=f"store-server-{self.port}", daemon=True)
        self._thread.start()

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def close(self) -> None:
        """Stop serving and give everything back. Clients that wait lose their connection."""
        if self._closing:
            return
        # In this order: once the thread sees that it is to close, the pipe is gone.
        os.write(self._wake_write, b"\0")
        self._closing = True
        self._thread.join(CLOSE_S)

    def _serve(self) -> None:
        try:
            while not self._closing:
                now = time.monotonic()
                for key, events in self._selector.select(self._seconds_to_next(now)):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.data, _Client):
                        self._attend(key.data, events)
                self._expire(time.monotonic())
        finally:
            self._give_back()

    def _seconds_to_next(self, now: float) -> float | None:
        waits = [client.wait_until for clients in self._parked.values() for client in clients]
        if self._clients or self._listen_again_at is not None:
            waits.append(max(self._next_scan, now))
        return max(0.0, min(waits) - now) if waits else None

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No descriptors left, most likely: the caller stays in the queue, which would wake us for ever.
            _log.warning("a store cannot take another client: %s", error)
            self._selector.unregister(self._listener)
            self._listen_again_at = time.monotonic() + SCAN_S
            return
        if len(self._clients) >= self._max_clients:
            _log.warning("a store has %d clients and refuses another", self._max_clients)
            connection.close()
            return
        connection.setblocking(False)
        make_lively(connection)
        client = _Client(connection, time.monotonic() + self._patience_s)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _attend(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._hear(client):
                self._drop(client)
                return
            client.flush()
        except BadFrame as error:
            _log.info("a client of the store sent what is no request: %s", error)
            self._drop(client)
        except OSError:
            self._drop(client)
        except Exception:  # noqa: BLE001  one request must never end the service of the others
            _log.exception("a request to the store")
            self._drop(client)
        else:
            self._watch(client)

    def _hear(self, client: _Client) -> bool:
        """Take what came; false if the client is gone."""
        try:
            data = client.connection.recv(CHUNK_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        if client.parked_at is not None:
            raise BadFrame("it talks while it waits")
        client.inbox += data
        self._greet(client)
        while client.name and not client.outbox and client.parked_at is None and (frame := client.frame()):
            self._answer(client, frame)
        client.stuck_at = time.monotonic() + self._patience_s if client.inbox or client.outbox else None
        return True

    def _greet(self, client: _Client) -> None:
        if client.name:
            return
        magic = store_wire.MAGIC[: len(client.inbox)]
        if not client.inbox.startswith(magic):
            raise BadFrame("it does not greet as a client does")
        if len(client.inbox) >= store_wire.HELLO_BYTES:
            client.name = bytes(client.inbox[len(store_wire.MAGIC) : store_wire.HELLO_BYTES])
            del client.inbox[: store_wire.HELLO_BYTES]
            client.connection.send(store_wire.MAGIC + self._id)

    def _answer(self, client: _Client, frame: bytes) -> None:
        match store_wire.unpack(frame):
            case [b"wait", _, milliseconds, *keys]:
                self._park(client, milliseconds, tuple(keys))
            case [operation, sequence, *fields]:
                name = operation.decode(errors="replace")
                client.outbox += self._apply_once(client.name, name, sequence, fields)
                if name in keyvalues.CHANGES:
                    self._wake(fields[::2] if name == keyvalues.SET else fields[:1])
            case _:
                raise BadFrame("a request has an operation and a number")

    def _apply_once(self, name: bytes, operation: str, sequence: bytes, fields: list[bytes]) -> bytes:
        last = self._answered.get(name)
        if operation in ONCE and last is not None and last[0] == sequence:
            return last[1]
        try:
            answer = store_wire.pack([store_wire.DONE, *self._values.apply(operation, fields)])
        except (StoreError, BadFrame) as error:
            return store_wire.pack([store_wire.REFUSED, str(error).encode()])
        if operation in ONCE:
            self._answered[name] = (sequence, answer)
            self._answered.move_to_end(name)
            if len(self._answered) > REMEMBERED_CLIENTS:
                self._answered.popitem(last=False)
        return answer

    def _park(self, client: _Client, milliseconds: bytes, keys: tuple[bytes, ...]) -> None:
        if not milliseconds.isdigit() or len(milliseconds) > 9:
            raise BadFrame("a wait has no time")
        limit_ms = min(int(milliseconds), store_wire.MAX_WAIT_MS)
        client.wait_until, client.wanted = time.monotonic() + limit_ms / 1000, keys
        self._park_or_answer(client)

    def _park_or_answer(self, client: _Client) -> None:
        """Wait for the next key that is missing; asked again only when that one is written."""
        missing = next((key for key in client.wanted if not self._values.has([key])), None)
        if missing is None:
            client.outbox += store_wire.pack([store_wire.DONE])
        else:
            client.parked_at = missing
            self._parked.setdefault(missing, set()).add(client)

    def _unpark(self, client: _Client) -> None:
        if client.parked_at is None:
            return
        others = self._parked[client.parked_at]
        others.discard(client)
        if not others:
            del self._parked[client.parked_at]
        client.parked_at = None

    def _wake(self, keys: list[bytes]) -> None:
        for key in keys:
            for client in tuple(self._parked.get(key, ())):
                self._unpark(client)
                self._park_or_answer(client)
                if client.parked_at is None:
                    self._attend(client, 0)

    def _expire(self, now: float) -> None:
        parked = [client for clients in self._parked.values() for client in clients]
        for client in parked:
            if now >= client.wait_until:
                self._unpark(client)
                client.outbox += store_wire.pack([store_wire.LATER])
                self._attend(client, 0)
        if now < self._next_scan:
            return
        self._next_scan = now + min(SCAN_S, self._patience_s)
        for client in [one for one in self._clients if one.stuck_at is not None and now >= one.stuck_at]:
            _log.info("a client of the store stopped in the middle of a frame: dropped")
            self._drop(client)
        if self._listen_again_at is not None and now >= self._listen_again_at:
            self._listen_again_at = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _watch(self, client: _Client) -> None:
        if client.outbox and client.stuck_at is None:
            client.stuck_at = time.monotonic() + self._patience_s
        # With an answer on its way nothing more is read: what a client can make us keep is bounded.
        events = selectors.EVENT_WRITE if client.outbox else selectors.EVENT_READ
        self._selector.modify(client.connection, events, client)

    def _drop(self, client: _Client) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        self._unpark(client)
        self._selector.unregister(client.connection)
        client.connection.close()

    def _give_back(self) -> None:
        for client in tuple(self._clients):
            self._drop(client)
        self._selector.close()
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


class _Client:
    """One connection, and how far its present request is."""

    def __init__(self, connection: socket.socket, stuck_at: float) -> None:
        self.connection = connection
        self.name = b""
        """The client's id, once it has greeted."""
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.stuck_at: float | None = stuck_at
        """When patience with a partial frame or an unread answer ends."""
        self.wanted: tuple[bytes, ...] = ()
        self.wait_until = 0.0
        self.parked_at: bytes | None = None

    def frame(self) -> bytes | None:
        """The next whole request, taken out of the inbox."""
        size = store_wire.frame_size(self.inbox)
        if size is None or len(self.inbox) < size:
            return None
        taken = bytes(self.inbox[:size])
        del self.inbox[:size]
        return taken

    def flush(self) -> None:
        """Send what the connection takes now."""
        with contextlib.suppress(BlockingIOError):
            while self.outbox:
                del self.outbox[: self.connection.send(self.outbox)]
        if not self.outbox and not self.inbox and self.name:
            self.stuck_at = None


def make_lively(connection: socket.socket) -> None:
    """Send small frames at once, and notice within about a minute that the other side has vanished."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _listening(host: str, port: int) -> socket.socket:
    if host in LOOPBACK:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((LOOPBACK[host], port), family=family, backlog=BACKLOG)
    return listening_everywhere(port)
