"""Countdown timers: a worker sets one around code that may hang; a server ends it when time is up."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

__all__ = [
    "RequestQueue",
    "TimerClient",
    "TimerRequest",
    "TimerServer",
    "configure",
    "expires",
]

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""A queue server looks for expired timers and for its stop at least that often."""
STOP_BOUND_S = 5.0


class TimerRequest:
    """A worker's wish: set a timer, or release it if `expiration_time` is negative. Equal by value.

    `worker_id`: whatever client and server agree on; a pid in those of this package.
    `scope_id`: the timer's name, one for each guarded piece of code.
    `expiration_time`: seconds since the epoch.
    """

    __slots__ = ("expiration_time", "scope_id", "worker_id")

    def __init__(self, worker_id: Any, scope_id: str, expiration_time: float) -> None:
        self.worker_id = worker_id
        self.scope_id = scope_id
        self.expiration_time = expiration_time

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TimerRequest):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in TimerRequest.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.worker_id!r}, {self.scope_id!r}, {self.expiration_time!r})"


class TimerClient(ABC):
    """A worker's side: sets and releases timers with the server."""

    @abstractmethod
    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set the timer `scope_id` to `expiration_time`, seconds since the epoch; a set one is replaced."""

    @abstractmethod
    def release(self, scope_id: str) -> None:
        """Take the timer back; one that is not set is ignored."""


class RequestQueue(ABC):
    """Where requests wait for a `TimerServer`."""

    @abstractmethod
    def size(self) -> int:
        """How many wait now. Until the next `get` there may be more, never less."""

    @abstractmethod
    def get(self, size: int, timeout: float) -> list[TimerRequest]:
        """Up to `size` requests, waiting for them at most `timeout` seconds."""


class TimerServer(ABC):
    """The agent's side over a queue: in a thread, takes requests and reaps workers whose timers ran out.

    A subclass keeps the timers and knows how to reap. `max_interval` is the longest wait for a request in
    seconds; the server looks at least once a second whatever it is, where torch may be that late.
    """

    def __init__(self, request_queue: RequestQueue, max_interval: float, daemon: bool = True) -> None:
        self._request_queue = request_queue
        self._max_interval = max_interval
        self._daemon = daemon
        self._stopping = threading.Event()
        self._watchdog_thread: threading.Thread | None = None

    @abstractmethod
    def register_timers(self, timer_requests: list[TimerRequest]) -> None:
        """Take requests in the order they came; those with a negative expiration time release."""

    @abstractmethod
    def clear_timers(self, worker_ids: set[Any]) -> None:
        """Forget all timers of these workers."""

    @abstractmethod
    def get_expired_timers(self, deadline: float) -> dict[Any, list[TimerRequest]]:
        """By worker, the timers with an expiration time of `deadline` (seconds since the epoch) or before."""

    @abstractmethod
    def _reap_worker(self, worker_id: Any) -> bool:
        """End the worker; false if that failed and shall be tried again. Raising counts as done."""

    def start(self) -> None:
        """Begin, in a thread. Returns at once; a server that runs already goes on."""
        if self._watchdog_thread is not None:
            return
        self._stopping.clear()
        name = type(self).__name__
        log.info("starting %s: max_interval %s s", name, self._max_interval)
        self._watchdog_thread = threading.Thread(target=self._watchdog_loop, daemon=self._daemon, name=name)
        self._watchdog_thread.start()

    def stop(self) -> None:
        """End the thread, and wait a few seconds for that at most. Harmless when repeated."""
        self._stopping.set()
        thread, self._watchdog_thread = self._watchdog_thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_BOUND_S)

    def _reap_worker_no_throw(self, worker_id: Any) -> bool:
        try:
            return self._reap_worker(worker_id)
        except Exception:
            log.exception("reaping worker %r raised: it counts as done", worker_id)
            return True

    def _watchdog_loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._run_watchdog()
            except Exception:
                log.exception("a look of the %s failed", type(self).__name__)
                # A queue that is broken for good must not make this thread spin.
                self._stopping.wait(LOOK_S)

    def _run_watchdog(self) -> None:
        batch = max(1, self._request_queue.size())
        self.register_timers(self._request_queue.get(batch, min(self._max_interval, LOOK_S)))
        reaped = set()
        for worker_id, expired in self.get_expired_timers(time.time()).items():
            log.warning("timers of worker %r ran out: %s", worker_id, [timer.scope_id for timer in expired])
            if self._reap_worker_no_throw(worker_id):
                reaped.add(worker_id)
            else:
                log.error("worker %r could not be reaped; it is tried again", worker_id)
        self.clear_timers(reaped)


_timer_client: TimerClient | None = None


def configure(timer_client: TimerClient) -> None:
    """Set the client that `expires` uses in this process."""
    global _timer_client
    _timer_client = timer_client
    log.info("timers of this process go to a %s", type(timer_client).__name__)


def expires(
    after: float, scope: str | None = None, client: TimerClient | None = None
) -> contextlib._GeneratorContextManager[None]:
    """Around code (`with`) or a function (as a decorator): it must be through within `after` seconds.

    `scope` names the timer, by default `<file>#<line>` of the caller (torch names them all after a line of
    contextlib, so that an inner timer takes the outer one with it). `client` defaults to the configured one;
    without any, entering raises RuntimeError. What the client raises passes through, but an error of the code
    itself is never hidden by a release that fails.
    """
    if scope is None:
        caller = sys._getframe(1)
        scope = f"{caller.f_code.co_filename}#{caller.f_lineno}"
    return _timed(after, scope, client)


@contextlib.contextmanager
def _timed(after: float, scope: str, client: TimerClient | None) -> Iterator[None]:
    client = client or _timer_client
    if client is None:
        raise RuntimeError("there is no timer client: call agentd.elastic.timer.configure(client) first")
    client.acquire(scope, time.time() + after)
    try:
        yield
    except BaseException:
        try:
            client.release(scope)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the first error counts
            log.warning("the timer %r could not be released: %s", scope, error)
        raise
    client.release(scope)
