"""What the time of day is worth, pure. A clock set far ahead is believed when it has stood for a day.

Nothing here waits by it: leases, graces and deadlines are monotonic. What is left are the ages of things on
disk, and one wrong moment of a clock must not make all of them old.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final

from agentd.quickdata import dataclass

TOLERANCE: Final = 600.0
"""Seconds a clock may be set by without a word."""
SETTLES: Final = 86_400.0
"""Seconds, in which agentd ran, after which a clock that was set ahead is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Both clocks at one moment."""

    wall: float
    """Seconds since the epoch."""
    boot: float
    """Seconds since the machine was started, also those in which it slept."""
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The clock as it was read last, and how much of it is not believed."""

    last: Reading
    ahead: float = 0.0
    """Seconds."""
    stood: float = 0.0
    """For how long that much was seen."""
    jumped: bool = False
    """It was set; else the machine, or agentd on it, was away and nobody knows for how long."""

    @property
    def now(self) -> float:
        """The time of day as far as it is believed, never later than the clock has it."""
        return self.last.wall - self.ahead


def look(former: Trust | None, reading: Reading) -> Trust:
    """What is believed after another look at the clocks."""
    if former is None:
        return Trust(last=reading)
    same_boot = former.last.boot_id == reading.boot_id
    elapsed = max(0.0, reading.boot - former.last.boot) if same_boot else 0.0
    step = reading.wall - former.last.wall - elapsed
    if step > TOLERANCE:
        jumped = former.jumped or same_boot
        return Trust(last=reading, ahead=former.ahead + step, jumped=jumped)
    ahead = max(0.0, former.ahead + step) if step < -TOLERANCE else former.ahead
    stood = former.stood + elapsed
    if ahead <= TOLERANCE or stood >= SETTLES:
        return Trust(last=reading)
    return Trust(last=reading, ahead=ahead, stood=stood, jumped=former.jumped)


def sentence(trust: Trust) -> str:
    """For people, if the clock was set ahead and is not believed."""
    if not trust.jumped:
        return ""
    return (
        f"the clock was set ahead by {trust.ahead / 3600:.1f} h; until it has stood for a day nothing is "
        "forgotten by its age"
    )


def as_text(trust: Trust) -> str:
    """For the journal."""
    return json.dumps(asdict(trust))


def from_text(text: str) -> Trust | None:
    """As the journal has it; None if nobody can read it."""
    try:
        found = json.loads(text, parse_constant=_refuse)
        last = found["last"]
        reading = Reading(wall=float(last["wall"]), boot=float(last["boot"]), boot_id=str(last["boot_id"]))
        return Trust(
            last=reading,
            ahead=float(found["ahead"]),
            stood=float(found["stood"]),
            jumped=bool(found["jumped"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no time")
