"""The observer's own time: seconds in which this process itself ran.

A peer is judged by how long it was silent while somebody listened. When this process was stopped, frozen
or starved, the clock stands still beyond a short step, so every lease and deadline grows by the gap; and the
first tick after a gap judges nobody, because what was said meanwhile is still waiting to be read.
"""

from __future__ import annotations

from collections import deque

GAPS_KEPT = 16


class OwnTime:
    """A clock that advances at most `step` seconds from one tick to the next."""

    def __init__(self, now: float, *, step: float, own: float | None = None) -> None:
        """`own`: what it shows at `now`, the same if not given."""
        self._step = step
        self._ticked_at = now
        self._own = now if own is None else own
        self._gaps: deque[tuple[float, float]] = deque(maxlen=GAPS_KEPT)
        """When a gap ended, and its length."""

    def tick(self, now: float) -> bool:
        """Go on to `now`. True: nobody was held up since the last tick, so silence may be judged."""
        on_time = now - self._ticked_at <= self._step
        if not on_time:
            self._gaps.append((now, now - self._ticked_at - self._step))
        self._own = self.at(now)
        self._ticked_at = now
        return on_time

    def at(self, now: float) -> float:
        """The own time of a monotonic `now` at or after the last tick."""
        return self._own + min(max(now - self._ticked_at, 0.0), self._step)

    def lost(self, now: float, within: float) -> float:
        """Seconds this process was held up, in gaps that ended in the last `within` seconds or end now."""
        present = max(0.0, now - self._ticked_at - self._step)
        return present + sum(length for ended, length in self._gaps if now - ended <= within)


class Ear:
    """How long a peer has been silent while this process listened."""

    def __init__(self, now: float, heartbeat: float) -> None:
        self._own = OwnTime(now, step=2 * heartbeat)
        self._heard_at = self._own.at(now)

    def heard(self, now: float) -> None:
        """It said something."""
        self._heard_at = self._own.at(now)

    def silence(self, now: float) -> float:
        """Called at each heartbeat. After a gap of our own nobody is judged."""
        on_time = self._own.tick(now)
        return self._own.at(now) - self._heard_at if on_time else 0.0
