"""Keeps an eye on the time of day: what of it is believed, over the lives of agentds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from agentd.core.clock import Reading, Trust, as_text, from_text, look, sentence
from agentd.core.conditions import Condition
from agentd.groups.conditions import Conditions
from agentd.groups.records import ClockRow
from agentd.procs.boottime import boottime
from agentd.procs.identity import boot_id

KEPT_EACH: Final = 600.0
"""Seconds between two notes for the next agentd, if nothing has happened."""


class Notes(Protocol):
    """The journal."""

    @property
    def clock(self) -> str: ...

    def post(self, record: ClockRow, /) -> None: ...


def reading() -> Reading:
    """The clocks now."""
    # Not the monotonic clock: it stands still while the machine sleeps, and the time of day does not.
    return Reading(wall=time.time(), boot=boottime(), boot_id=boot_id())


class ClockKeeper:
    """Looks when it is told to."""

    def __init__(self, notes: Notes, conditions: Conditions, read: Callable[[], Reading] = reading) -> None:
        self._notes = notes
        self._conditions = conditions
        self._read = read
        self._trust: Trust | None = from_text(notes.clock)
        self._noted: Trust | None = None

    def step(self) -> None:
        """One look."""
        trust = self._trust = look(self._trust, self._read())
        self._conditions.put(Condition.CLOCK_JUMPED, sentence(trust))
        noted = self._noted
        if (
            noted is None
            or noted.ahead != trust.ahead
            or not 0 <= trust.last.boot - noted.last.boot < KEPT_EACH
        ):
            self._noted = trust
            self._notes.post(ClockRow(text=as_text(trust)))

    def now(self) -> float:
        """The time of day as far as it is believed."""
        return look(self._trust, self._read()).now
