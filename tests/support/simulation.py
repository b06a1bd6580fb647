"""A waiter whose time is simulated: nothing sleeps, and what is scheduled happens in its order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from agentd.procs.waiter import Waiter


class WaitsForEver(AssertionError):
    """Somebody waits without a deadline for something that will not happen."""


class SimulatedWaiter(Waiter):
    """Time passes only in `wait` and in `pass_time`. File descriptors are not served."""

    def __init__(self) -> None:
        super().__init__()
        self._time = 0.0
        self._order = itertools.count()
        self._scheduled: list[tuple[float, int, Callable[[], object]]] = []

    def now(self) -> float:
        return self._time

    def at(self, moment: float, action: Callable[[], object]) -> None:
        """Have `action` done at that moment."""
        heapq.heappush(self._scheduled, (moment, next(self._order), action))

    def wait(self, deadline: float | None) -> None:
        until = self._run_pumps(deadline)
        moments = [moment for moment in (until, self._next_moment()) if moment is not None]
        if not moments:
            raise WaitsForEver(f"at {self._time:g} s")
        self.pass_time(max(0.0, min(moments) - self._time))

    def pass_time(self, seconds: float) -> None:
        """Let time pass without serving pumps, as code does that knows no waiter."""
        until = self._time + seconds
        while (moment := self._next_moment()) is not None and moment <= until:
            self._time = max(self._time, moment)
            heapq.heappop(self._scheduled)[2]()
        self._time = until

    def _next_moment(self) -> float | None:
        return self._scheduled[0][0] if self._scheduled else None
