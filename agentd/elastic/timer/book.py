"""The timers that are set. Pure: knows no clock and no process, only what it is told.

A timer's end is kept on the monotonic clock from the moment it was read, so that a wall clock that jumps
neither kills a worker nor spares it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agentd.elastic.timer.wire import FileTimerRequest
from agentd.procs.identity import ProcessIdentity
from agentd.quickdata import dataclass

__all__ = ["MOST_TIMERS", "Timer", "TimerBook", "deadly"]

MOST_TIMERS = 1 << 16
"""A worker that never releases must not eat the agent's memory."""


@dataclass(frozen=True, slots=True)
class Timer:
    """One set timer and the very process that set it."""

    request: FileTimerRequest
    owner: ProcessIdentity
    set_at: float
    """When it was read, on the monotonic clock."""
    due: float
    """When it runs out, on the monotonic clock; infinite if never."""

    @property
    def length_s(self) -> float:
        """For how long it was set."""
        return max(0.0, self.due - self.set_at)


class TimerBook:
    """Timers by process and scope."""

    def __init__(self) -> None:
        self._timers: dict[tuple[int, str], Timer] = {}
        self._next_due: float | None = None

    def __len__(self) -> int:
        return len(self._timers)

    @property
    def timers(self) -> tuple[Timer, ...]:
        """All that are set."""
        return tuple(self._timers.values())

    def acquire(
        self, request: FileTimerRequest, owner: ProcessIdentity, *, now: float, wall_now: float
    ) -> bool:
        """Set a timer or replace it; false if there are too many.

        `now` is monotonic, `wall_now` the epoch's, both of the same moment.
        """
        key = (request.worker_pid, request.scope_id)
        if key not in self._timers and len(self._timers) >= MOST_TIMERS:
            return False
        due = now + (request.expiration_time - wall_now)
        self._timers[key] = Timer(request, owner, now, due)
        self._next_due = None
        return True

    def release(self, pid: int, scope: str) -> None:
        """Take a timer back; an unknown one is ignored."""
        self._timers.pop((pid, scope), None)
        self._next_due = None

    def drop(self, pids: Collection[int]) -> None:
        """Forget all timers of these processes."""
        self._timers = {key: timer for key, timer in self._timers.items() if key[0] not in pids}
        self._next_due = None

    def expired(self, now: float, *, except_of: Collection[int] = ()) -> dict[int, list[Timer]]:
        """By process, the timers that have run out, in the order of their ends."""
        found: dict[int, list[Timer]] = {}
        if now < self.next_due():
            return found
        for timer in sorted(self._timers.values(), key=lambda timer: timer.due):
            if timer.due <= now and timer.request.worker_pid not in except_of:
                found.setdefault(timer.request.worker_pid, []).append(timer)
        return found

    def next_due(self) -> float:
        """When the next one runs out, on the monotonic clock; infinite if none does."""
        if self._next_due is None:
            self._next_due = min((timer.due for timer in self._timers.values()), default=float("inf"))
        return self._next_due


def deadly(timers: Iterable[Timer]) -> tuple[list[Timer], Timer | None]:
    """Of a process' expired timers in the order of their ends: those to tell of, and the one that kills.

    As torch: up to the first that names a signal; without any, all are told of and nobody is killed.
    """
    told = []
    for timer in timers:
        told.append(timer)
        if timer.request.signal > 0:
            return told, timer
    return told, None
