"""The clock of what must be true for another process, and after the machine slept: CLOCK_BOOTTIME."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since the machine started, those it slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # noqa: TID251 - the clock of this meaning
