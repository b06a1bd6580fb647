"""What is wrong with what comes through the timer pipe: counted, and told once a period, not once a line."""

from __future__ import annotations

import logging

__all__ = ["Complaints"]

PERIOD_S = 60.0
MOST_STRANGERS = 10

log = logging.getLogger(__name__)


class Complaints:
    """Of one pipe. Nothing here raises."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._garbage = 0
        self._sample = b""
        self._strangers: set[int] = set()
        self._refused = 0
        self._next = float("-inf")

    def garbage(self, count: int, sample: bytes) -> None:
        """`count` lines were no requests; the last of them looked like `sample`."""
        if count:
            self._garbage += count
            self._sample = sample

    def stranger(self, pid: int) -> None:
        """A process that may not be signalled wants a timer."""
        if len(self._strangers) < MOST_STRANGERS:
            self._strangers.add(pid)

    def refused(self) -> None:
        """There are too many timers for one more."""
        self._refused += 1

    def tell(self, now: float) -> None:
        """Log what there is, if a period has passed since the last time. `now` is monotonic."""
        if now < self._next or not (self._garbage or self._strangers or self._refused):
            return
        self._next = now + PERIOD_S
        if self._garbage:
            text = "%d lines on the timer pipe %s were no requests; the last: %r"
            log.warning(text, self._garbage, self._path, self._sample)
        if self._strangers:
            pids = ", ".join(map(str, sorted(self._strangers)))
            log.warning("timers of processes outside the group are ignored: %s", pids)
        if self._refused:
            log.warning("%d timers were not set, too many are: does a worker never release?", self._refused)
        self._garbage = self._refused = 0
        self._strangers.clear()
