"""Timers over a `multiprocessing` queue, for workers that are children of the process that made it.

A worker that dies while it writes to such a queue may leave it locked for all others: where that matters,
use the timers over a named pipe.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any, Protocol

from agentd.elastic.timer.api import RequestQueue, TimerClient, TimerRequest, TimerServer
from agentd.procs.identity import ProcessIdentity, identify, is_alive, send_signal

__all__ = ["LocalTimerClient", "LocalTimerServer", "MultiprocessingRequestQueue"]

log = logging.getLogger(__name__)


class ProcessQueue(Protocol):
    """What is used of a `multiprocessing.Queue`."""

    def put(self, obj: Any) -> None:
        """Add an item."""

    def get(self, block: bool = ..., timeout: float | None = ...) -> Any:
        """Take an item; raises `queue.Empty`."""

    def qsize(self) -> int:
        """How many there are, about."""


class LocalTimerClient(TimerClient):
    """Sets this process' timers through the queue of a `LocalTimerServer`."""

    def __init__(self, mp_queue: ProcessQueue) -> None:
        super().__init__()
        self._mp_queue = mp_queue

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set this process' timer `scope_id` to `expiration_time`, seconds since the epoch."""
        self._mp_queue.put(TimerRequest(os.getpid(), scope_id, expiration_time))

    def release(self, scope_id: str) -> None:
        """Take this process' timer back."""
        self._mp_queue.put(TimerRequest(os.getpid(), scope_id, -1))


class MultiprocessingRequestQueue(RequestQueue):
    """A `multiprocessing.Queue` as a `RequestQueue`."""

    def __init__(self, mp_queue: ProcessQueue) -> None:
        super().__init__()
        self._mp_queue = mp_queue

    def size(self) -> int:
        """How many requests wait, about."""
        return self._mp_queue.qsize()

    def get(self, size: int, timeout: float) -> list[TimerRequest]:
        """Up to `size` requests, waiting for them at most `timeout` seconds."""
        # Late: a process without such a queue needs none of it.
        from queue import Empty

        deadline = time.monotonic() + timeout
        requests: list[TimerRequest] = []
        while len(requests) < size:
            try:
                requests.append(self._mp_queue.get(True, max(0.0, deadline - time.monotonic())))
            except Empty:
                break
        return requests


class LocalTimerServer(TimerServer):
    """Kills (SIGKILL) workers that do not release the timers of their `LocalTimerClient` in time.

    `mp_queue`: the queue the workers got. `max_interval`: seconds, as in `TimerServer`.

    Of a process that is gone by then its timer is forgotten, and a new one with its pid is not touched; this
    process itself is never killed. Items that are no requests are ignored.
    """

    def __init__(self, mp_queue: ProcessQueue, max_interval: float = 60, daemon: bool = True) -> None:
        super().__init__(MultiprocessingRequestQueue(mp_queue), max_interval, daemon)
        self._timers: dict[tuple[int, str], TimerRequest] = {}
        self._owners: dict[int, ProcessIdentity] = {}

    def register_timers(self, timer_requests: list[TimerRequest]) -> None:
        """Take requests in the order they came; those with a negative expiration time release."""
        for request in timer_requests:
            if not _is_request(request):
                log.warning("no timer request: %.80r", request)
            elif request.expiration_time < 0:
                self._timers.pop((request.worker_id, request.scope_id), None)
            else:
                self._acquire(request)

    def clear_timers(self, worker_ids: set[Any]) -> None:
        """Forget all timers of these processes."""
        self._timers = {key: timer for key, timer in self._timers.items() if key[0] not in worker_ids}
        for pid in worker_ids:
            self._owners.pop(pid, None)

    def get_expired_timers(self, deadline: float) -> dict[Any, list[TimerRequest]]:
        """By pid, the timers with an expiration time of `deadline` (seconds since the epoch) or before."""
        expired: dict[Any, list[TimerRequest]] = {}
        for timer in self._timers.values():
            if timer.expiration_time <= deadline:
                expired.setdefault(timer.worker_id, []).append(timer)
        return expired

    def _acquire(self, request: TimerRequest) -> None:
        pid = request.worker_id
        owner = identify(pid)
        if owner is None or pid == os.getpid():
            log.warning("a timer for process %d is ignored: it is gone, or this one", pid)
            return
        if self._owners.get(pid) != owner:
            self.clear_timers({pid})
            self._owners[pid] = owner
        self._timers[pid, request.scope_id] = request

    def _reap_worker(self, worker_id: Any) -> bool:
        owner = self._owners.get(worker_id)
        if owner is None or send_signal(owner, signal.SIGKILL):
            return True
        return not is_alive(owner)


def _is_request(item: object) -> bool:
    """By its looks: a worker may use torch's own client."""
    pid, scope = getattr(item, "worker_id", None), getattr(item, "scope_id", None)
    seconds = getattr(item, "expiration_time", None)
    return type(pid) is int and pid > 0 and isinstance(scope, str) and isinstance(seconds, (int, float))
