"""Health checks over HTTP: GET or HEAD of any path is answered 200 while alive and 503 when not.

A plain TCP connect works too: it tells that the agent's process is there and takes connections.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from agentd.elastic.agent.server.health.listener import HealthSocket, open_listener, silence
from agentd.elastic.agent.server.health_check_server import HealthCheckError, HealthCheckServer, Liveness
from agentd.procs.waiter import Waiter

__all__ = ["HttpHealthCheckServer"]

log = logging.getLogger(__name__)

STOP_S = 5.0
"""How long `stop` waits for the thread, which only a callback that blocks can hold up."""


class HttpHealthCheckServer(HealthCheckServer):
    """Serves on all addresses of the machine, IPv4 and IPv6, without authentication, as probes want it.

    With a `waiter` it lives in the waits of that waiter's thread: no thread of its own, and no answer while
    that thread is stuck, which a probe takes for what it is. Without one it runs a daemon thread.
    """

    def __init__(
        self,
        alive_callback: Callable[[], float],
        port: int,
        timeout: float,
        *,
        waiter: Waiter | None = None,
    ) -> None:
        """As `HealthCheckServer`. Given a `waiter`, `start` and `stop` belong to its thread."""
        super().__init__(alive_callback, port, timeout)
        self._waiter = waiter
        self._socket: HealthSocket | None = None
        self._thread: _ServingThread | None = None

    def start(self) -> None:
        """Bind the port and serve. Does nothing while it serves; raises `HealthCheckPortError`."""
        if self._socket is not None or self._thread is not None:
            return
        listener = open_listener(self._port)
        self._port = listener.getsockname()[1]
        if self._waiter is not None:
            self._socket = HealthSocket(listener, self.liveness, self._waiter)
        else:
            self._thread = self._serving_thread(listener)
        log.info("health checks over HTTP on port %d", self._port)

    def stop(self) -> None:
        """Free the port at once and end the connections, in at most `STOP_S` seconds. May be called again."""
        served, self._socket = self._socket, None
        thread, self._thread = self._thread, None
        if served is not None:
            served.close()
        if thread is not None:
            thread.stop()

    def _serving_thread(self, listener: socket.socket) -> _ServingThread:
        try:
            return _ServingThread(listener, self.liveness)
        except (RuntimeError, OSError) as error:
            listener.close()
            raise HealthCheckError(f"no health checks: their thread cannot be started: {error}") from error


class _ServingThread:
    """A waiter of its own for the socket, in a daemon thread."""

    def __init__(self, listener: socket.socket, liveness: Callable[[], Liveness]) -> None:
        self._listener = listener
        self._liveness = liveness
        self._waiter = Waiter()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="agentd health checks", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._waiter.close()
            raise

    def stop(self) -> None:
        self._stopping = True
        # Here and not in the thread: the port is free even if a callback blocks the thread for ever.
        silence(self._listener)
        self._waiter.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_S)
            if self._thread.is_alive():
                log.warning("the health check's callback has not returned in %g s", STOP_S)

    def _run(self) -> None:
        with self._waiter:
            served = HealthSocket(self._listener, self._liveness, self._waiter)
            try:
                while not self._stopping:
                    self._waiter.wait(None)
            finally:
                served.close()
