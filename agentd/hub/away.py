"""A hub that is away: since when, for how long that may be, and when it is tried again. No clock, no I/O.

`now` is in seconds of the loop's clock. Whose workers run needs no hub, so what is counted is need.
"""

from __future__ import annotations

from collections.abc import Callable

from agentd.api.errors import AgentError, NodeIdTaken

FIRST_BACKOFF = 0.1
LAST_BACKOFF = 2.0

_LONGEST_HOLD = 3600.0


class HubAway:
    """What one node's session knows of its hub's silence."""

    def __init__(self, hub_timeout: float, uniform: Callable[[float, float], float]) -> None:
        """`hub_timeout`: longest a member waits that needs the hub. `uniform` draws the part of a pause."""
        self._hub_timeout = hub_timeout
        self._uniform = uniform
        self._lost = False
        self._heard_at: float | None = None
        self._needed_since: float | None = None
        self._held_until: float | None = None
        """When a node id that is another's for the hub is to be given up."""
        self._backoff = FIRST_BACKOFF

    def heard(self, now: float) -> None:
        """It said something."""
        self._heard_at = now

    def found(self) -> bool:
        """It has taken the node; tells whether it had been lost."""
        was_lost, self._lost = self._lost, False
        self._needed_since = self._held_until = None
        self._backoff = FIRST_BACKOFF
        return was_lost

    def lost(self) -> bool:
        """A stream to it broke, or there was none; tells whether that is news."""
        was_lost, self._lost = self._lost, True
        return not was_lost

    def silence(self, now: float) -> float:
        """For how long it has said nothing; 0 if it never has."""
        return 0.0 if self._heard_at is None else now - self._heard_at

    def waited_in_vain(self, now: float, *, needed: bool) -> float | None:
        """For how long a member has needed it, if that is too long; None: it may go on."""
        if not needed:
            self._needed_since = None
            return None
        if self._needed_since is None:
            self._needed_since = now
        waited = now - self._needed_since
        return waited if waited >= self._hub_timeout else None

    def may_yet_take_us(self, error: AgentError, now: float) -> bool:
        """Whether it may find that the one who has our node id is gone: this node made anew."""
        if not isinstance(error, NodeIdTaken):
            return False
        until = now + _held_s(error) + 2 * LAST_BACKOFF
        self._held_until = until if self._held_until is None else min(self._held_until, until)
        return now < self._held_until

    def pause(self) -> float:
        """Until the next try. Many nodes lose one hub together: they shall not come back together."""
        pause = self._backoff * self._uniform(0.5, 1.0)
        self._backoff = min(self._backoff * 2, LAST_BACKOFF)
        return pause


def _held_s(error: NodeIdTaken) -> float:
    """What the hub says; one of an older version says nothing."""
    try:
        told = float(error.facts.get("held_s", ""))
    except ValueError:
        return 0.0
    return min(told, _LONGEST_HOLD) if told > 0 else 0.0
