"""Workers stuck in the kernel: in state D for so long that not even SIGKILL reaches them.

Only the looks count: a process is judged by what it was at each of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping

from agentd.procs.procfs import ProcessStat, read_stat

__all__ = ["TIMEOUT_VARIABLE", "StateWatch", "timeout_from"]

log = logging.getLogger(__name__)

TIMEOUT_VARIABLE = "TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT"
"""Seconds, as in torch; unset, unreadable or not above 0: nobody looks."""

UNINTERRUPTIBLE = "D"


class StateWatch:
    """Finds processes that have been in uninterruptible sleep without a break."""

    def __init__(self, timeout_s: float, read_state: Callable[[int], ProcessStat | None] = read_stat) -> None:
        """`timeout_s` is how long is too long; `read_state` tells what a pid is now, `None` if it is gone."""
        self._timeout_s = timeout_s
        self._read_state = read_state
        self._stuck: dict[tuple[int, int], float] = {}
        """(pid, start time) -> the first look of its present sleep."""

    def look(self, pids: Iterable[int], now: float) -> frozenset[int]:
        """The pids that are in state D at `now` and at every look of the last `timeout_s` seconds.

        `now` is monotonic. A process that is gone, awake, or not among `pids` begins anew, and so does
        another process under the same pid.
        """
        stats = [(pid, self._read_state(pid)) for pid in frozenset(pids)]
        asleep = [(pid, stat.start_time) for pid, stat in stats if stat and stat.state == UNINTERRUPTIBLE]
        self._stuck = {process: self._stuck.get(process, now) for process in asleep}
        return frozenset(pid for (pid, _), since in self._stuck.items() if now - since >= self._timeout_s)


def timeout_from(value: float | str | None, env: Mapping[str, str]) -> float | None:
    """The timeout in seconds, or `None` for off: `value` if there is one, else the environment's.

    0, less than 0 and what cannot be read are off; the last also warns.
    """
    source = "uninterruptible_state_timeout"
    if value is None:
        source, value = TIMEOUT_VARIABLE, env.get(TIMEOUT_VARIABLE, "").strip() or None
    if value is None:
        return None
    try:
        timeout_s = float(value)
    except (TypeError, ValueError):
        timeout_s = math.nan
    if math.isnan(timeout_s):
        log.warning("%s is no number of seconds: %r; nobody looks for stuck workers", source, value)
        return None
    return timeout_s if 0 < timeout_s < math.inf else None
