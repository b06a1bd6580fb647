"""Health checks of an agent as grpc.health.v1. The elastic library finds it by entry point, under "grpc"."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from grpc_health.v1.health import HealthServicer

from agentd.api.channel import SERVER_OPTIONS
from agentd.elastic.agent.server.health.listener import open_listener
from agentd.elastic.agent.server.health_check_server import (
    HealthCheckPortError,
    HealthCheckServer,
    Liveness,
)
from agentd.procs.waiter import Waiter
from agentd.rpc import health_messages as pb
from agentd.rpc.health_book import Health

__all__ = ["GrpcHealthCheckServer"]

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""Between two looks at the callback: how late Watch may tell of a change."""
STOP_S: Final = 5.0
_THREADS: Final = 4  # Watch keeps none


class GrpcHealthCheckServer(HealthCheckServer):
    """Check, Watch and List for the service "": the agent itself. SERVING while alive, else NOT_SERVING.

    It has threads of its own, as gRPC has. With a `waiter` the callback is asked in the waits of that
    waiter's thread, and a thread that does not come round for `timeout` seconds is not serving either.
    Not for an agent that forks its workers (start method "fork"): gRPC does not survive a fork.
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
        self._looks = _Looks(self.liveness, timeout)
        self._serving: _Serving | None = None

    def start(self) -> None:
        """Bind the port and serve. Does nothing while it serves; raises `HealthCheckPortError`."""
        if self._serving is not None:
            return
        # gRPC tells neither why a port cannot be bound nor, in old releases, that it could not.
        with open_listener(self._port) as probe:
            host = "[::]" if ":" in probe.getsockname()[0] else "0.0.0.0"
        self._looks.look()
        if self._waiter is not None:
            self._waiter.add_pump(self._looks.pump)
        self._serving = _Serving(self._looks, asks=self._waiter is None)
        try:
            self._port = self._serving.start(host, self._port)
        except HealthCheckPortError:
            self.stop()
            raise
        log.info("health checks over gRPC on port %d", self._port)

    def stop(self) -> None:
        """End all calls and free the port, in at most `STOP_S` seconds. May be called again."""
        serving, self._serving = self._serving, None
        if self._waiter is not None:
            self._waiter.remove_pump(self._looks.pump)
        if serving is not None:
            serving.stop()


class _Looks:
    """The last look at the callback. It ages by itself, so that nobody who asks waits for the callback."""

    def __init__(self, liveness: Callable[[], Liveness], timeout: float) -> None:
        self._liveness = liveness
        self._timeout = timeout
        self._last: tuple[Liveness, float] | None = None

    def look(self) -> None:
        """Ask the callback. For one thread only."""
        self._last = (self._liveness(), time.monotonic())

    def pump(self, now: float) -> float:
        """Ask in the waits of a waiter."""
        if self._last is None or time.monotonic() - self._last[1] >= LOOK_S:
            self.look()
        return now + LOOK_S

    @property
    def alive(self) -> bool:
        if self._last is None:
            return False
        liveness, at = self._last
        return liveness.age is not None and liveness.age + time.monotonic() - at <= self._timeout


class _Serving:
    """The gRPC server, and the thread that tells Watch of changes.

    That thread `asks` the callback if no waiter does.
    """

    def __init__(self, looks: _Looks, *, asks: bool) -> None:
        self._looks = looks
        self._asks = asks
        self._servicer = _Servicer(looks)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="agentd health checks")
        self._server = grpc.server(self._executor, options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((self._servicer.handler(),))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="agentd health changes", daemon=True)

    def start(self, host: str, port: int) -> int:
        """Serve; answers the port."""
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise HealthCheckPortError(port, str(error)) from error
        if not bound:
            raise HealthCheckPortError(port, "gRPC could not bind it")
        self._server.start()
        self._thread.start()
        return bound

    def stop(self) -> None:
        """End all calls and give the port back."""
        deadline = time.monotonic() + STOP_S
        self._stopping.set()
        ended = self._server.stop(None).wait(STOP_S)
        self._executor.shutdown()  # its calls wait for nothing
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if not ended or self._thread.is_alive():
            log.warning("the health check server has not ended in %g s: a callback blocks it", STOP_S)

    def _tell(self) -> None:
        while not self._stopping.wait(LOOK_S):
            if self._asks:
                self._looks.look()
            self._servicer.refresh()


class _Servicer(HealthServicer):
    """The packaged servicer, whose Watch keeps no thread, over the looks; and List."""

    def __init__(self, looks: _Looks) -> None:
        super().__init__()
        self._looks = looks
        self._shown: Health | None = None
        self._refreshing = threading.Lock()
        self.refresh()  # the packaged one begins as SERVING

    def refresh(self) -> Health:
        """Tell watchers if it changed; answers how it is."""
        with self._refreshing:
            health = Health.SERVING if self._looks.alive else Health.NOT_SERVING
            if health is not self._shown:
                self._shown = health
                self.set("", health.value)
            return health

    def Check(self, request: Any, context: Any) -> Any:
        self.refresh()
        return super().Check(request, context)

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:
        self.refresh()
        return super().Watch(request, context, send_response_callback)

    def List(self, _request: Any, _context: Any) -> Any:
        return pb.ListResponse(statuses={"": pb.CheckResponse(status=self.refresh().value)})

    def handler(self) -> Any:
        """All three methods: the packaged registration lacks List in old releases."""
        handlers: dict[str, Any] = {
            "Check": grpc.unary_unary_rpc_method_handler(self.Check, pb.CheckRequest.FromString, _serialized),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.Watch, pb.CheckRequest.FromString, _serialized
            ),
            "List": grpc.unary_unary_rpc_method_handler(self.List, pb.ListRequest.FromString, _serialized),
        }
        return grpc.method_handlers_generic_handler(pb.SERVICE, handlers)


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
