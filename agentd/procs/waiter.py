"""One event wait for a single-threaded process: file descriptors, timed pumps and a wake-up from outside.

Whatever a thread of agentd's worker side waits for (an exit, a control socket, a deadline) it waits for here,
so that nothing it must also serve is ever blocked. A `Waiter` belongs to the thread that calls `wait`; only
`wake` may be called from anywhere.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, TypeAlias

Callback: TypeAlias = Callable[[], object]
Pump: TypeAlias = Callable[[float], "float | None"]
"""Called with the monotonic time before each wait; returns when it wants to be called again at the latest."""


class HasFileno(Protocol):
    """A socket, a file, a pipe end."""

    def fileno(self) -> int: ...


FileLike: TypeAlias = "int | HasFileno"


class Waiter:
    """Waits for many things at once. May return early: callers loop on their own condition.

    Its time is `now()`. Who lives in a waiter and decides by time asks it, so that a simulated waiter, whose
    `now` and `wait` are overridden together, simulates them all.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._pumps: list[Pump] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, (self._drain_wakes, None))

    def now(self) -> float:
        """The monotonic time, in seconds, that deadlines and pumps speak of."""
        return time.monotonic()

    def add(self, fileobj: FileLike, callback: Callback | None, *, writable: Callback | None = None) -> None:
        """Call `callback` while `fileobj` is readable or hung up, and `writable` while it can be written.

        Added again, the new callbacks replace the old ones. A callback may raise: that passes out of `wait`.
        """
        events = (selectors.EVENT_READ if callback else 0) | (selectors.EVENT_WRITE if writable else 0)
        if fileobj in self._selector.get_map():
            self._selector.modify(fileobj, events, (callback, writable))
        else:
            self._selector.register(fileobj, events, (callback, writable))

    def remove(self, fileobj: FileLike) -> None:
        """Watch `fileobj` no longer; unknown ones are ignored. Remove before closing."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def add_pump(self, pump: Pump) -> None:
        """Call `pump(now)` in every wait, and no later than the time it last answered.

        A pump that did something others wait for answers `now`, which ends the wait.
        """
        self._pumps.append(pump)

    def remove_pump(self, pump: Pump) -> None:
        """Call `pump` no longer; unknown ones are ignored."""
        with contextlib.suppress(ValueError):
            self._pumps.remove(pump)

    def descriptors(self) -> frozenset[int]:
        """Its own descriptors and those it watches: what a forked child must not keep."""
        if self._wake_read < 0:
            return frozenset()
        watched = {key.fd for key in self._selector.get_map().values()}
        return frozenset(watched | {self._selector.fileno(), self._wake_read, self._wake_write})

    def wait(self, deadline: float | None) -> None:
        """Serve what is due, waiting for it until the monotonic `deadline` at most (`None`: for ever)."""
        until = self._run_pumps(deadline)
        timeout = None if until is None else max(0.0, until - self.now())
        for key, events in self._selector.select(timeout):
            # An earlier callback of the batch may have removed or replaced this one.
            if self._selector.get_map().get(key.fd) is not key:
                continue
            readable, writable = key.data
            if events & selectors.EVENT_READ and readable is not None:
                readable()
            if events & selectors.EVENT_WRITE and writable is not None:
                if self._selector.get_map().get(key.fd) is key:
                    writable()

    def wait_until(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Serve until `condition()` holds or the deadline passes; tells whether it holds."""
        while not condition():
            if deadline is not None and self.now() >= deadline:
                return False
            self.wait(deadline)
        return True

    def wake(self) -> None:
        """End the present or the next wait. Safe from any thread and from signal handlers."""
        # A full pipe already wakes; a closed one has nobody left to wake.
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"\0")

    @contextlib.contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Let signals end a wait, also one that arrives just before the wait begins.

        Without it Python runs a handler that came too early only after the wait. Does nothing off the main
        thread, where no handler runs.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)

    def close(self) -> None:
        """Give the file descriptors back; what was added stays open."""
        if self._wake_read < 0:
            return
        self._selector.close()
        self._pumps.clear()
        read, write, self._wake_read, self._wake_write = self._wake_read, self._wake_write, -1, -1
        os.close(read)
        os.close(write)

    def __enter__(self) -> Waiter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_pumps(self, deadline: float | None) -> float | None:
        now = self.now()
        for pump in tuple(self._pumps):
            wish = pump(now)
            if wish is not None and (deadline is None or wish < deadline):
                deadline = wish
        return deadline

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
