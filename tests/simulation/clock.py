"""Processes with event loops of their own, on one clock that jumps from one thing to do to the next.

Real asyncio code runs here, many processes in one thread: each can be frozen (its time goes on, nothing of
it runs) and killed (nothing of it is heard again). What happens, and in which order, follows from the program
alone.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    # What nobody calls here is missing; what is there is simpler than it could be.
    _Loop: TypeAlias = Any
else:
    _Loop = asyncio.AbstractEventLoop

START = 1000.0


class Handle:
    """Something to do, that may be cancelled. What asyncio wants of a timer, and no more."""

    __slots__ = ("args", "callback", "cancelled", "process")

    def __init__(self, process: Process, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """All that is to be done by all processes, in order of time, then of asking."""

    def __init__(self) -> None:
        self.now = START
        self.ready: deque[Handle] = deque()
        self.timers: list[tuple[float, int, Handle]] = []
        self.count = 0
        self.faults: list[str] = []
        """What a process failed with that nobody awaited."""

    def run_until(self, moment: float) -> None:
        """Let time pass."""
        ready, timers = self.ready, self.timers
        running: Process | None = None
        try:
            while True:
                while ready:
                    handle = ready.popleft()
                    if handle.cancelled:
                        continue
                    process = handle.process
                    if process.stopped:
                        process.park(handle)
                        continue
                    if process is not running:
                        running = process
                        _set_running_loop(process)
                    handle.callback(*handle.args)
                if not timers or timers[0][0] > moment:
                    self.now = moment
                    return
                self.now, _, handle = heapq.heappop(timers)
                ready.append(handle)
        finally:
            _set_running_loop(None)


class Process(_Loop):  # type: ignore[misc]
    """One process: an event loop whose callbacks are done unless it is frozen or dead."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.stopped = False
        """Frozen or dead: the clock leaves its callbacks to `park`."""
        self.dead = False
        self._parked: list[Handle] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_rites: deque[Handle] = deque()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def thaw(self) -> None:
        """SIGCONT: what had become due is done now, in its order."""
        if self.dead:
            return
        self.stopped = False
        parked, self._parked = self._parked, []
        self.clock.ready.extend(parked)

    def kill(self) -> None:
        """SIGKILL. Its coroutines are unwound in a world that no longer hears them."""
        if self.dead:
            return
        self.dead = self.stopped = True
        # Steps of coroutines that were due already unwind them too; nothing else of it is done any more.
        due = [*self._parked, *(handle for handle in self.clock.ready if handle.process is self)]
        self._last_rites.extend(handle for handle in due if _is_step(handle))
        self._parked.clear()
        interrupted = asyncio.events._get_running_loop()
        _set_running_loop(self)
        try:
            for task in list(self._tasks):
                task.cancel()
            while self._last_rites:
                handle = self._last_rites.popleft()
                handle.callback(*handle.args)
        finally:
            _set_running_loop(interrupted)

    def park(self, handle: Handle) -> None:
        """Keep what is due for the time when the process runs again."""
        if not self.dead:
            self._parked.append(handle)

    # --- what asyncio asks of a loop ------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        handle = Handle(self, callback, args)
        (self._last_rites if self.dead else self.clock.ready).append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        handle = Handle(self, callback, args)
        if not self.dead:
            clock = self.clock
            clock.count += 1
            heapq.heappush(clock.timers, (when, clock.count, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        return self.call_at(self.clock.now + delay, callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **_: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def live(self, life: Coroutine[Any, Any, None]) -> None:
        """Do it as long as the process lives; whatever it fails with is a fault."""
        self.create_task(life).add_done_callback(self._check)

    def _check(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.clock.faults.append(f"{self.name}: {task.exception()!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead:
            self.clock.faults.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")


def _is_step(handle: Handle) -> bool:
    return not handle.cancelled and isinstance(getattr(handle.callback, "__self__", None), asyncio.Task)
