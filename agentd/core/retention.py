"""Which ended runs are forgotten, pure: by age, by number, and by what all runs take of the disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentd.quickdata import dataclass

KEPT_AT_LEAST: Final = 3600.0
"""Seconds after its end in which a run is never forgotten: somebody is about to ask how it ended."""
KEPT_RUNS: Final = 1000
"""Ended runs of a node, whatever their age and size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an operator lets ended runs take."""

    age: float
    """Seconds after its end in which a run is kept, if there is room."""
    size: int
    """Bytes that all runs may take together, live ones too, with the journal."""
    count: int = KEPT_RUNS


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that is over, and what it takes."""

    run_id: str
    incarnation: int
    ended_at: float
    size: int = 0


def to_forget(ended: Iterable[EndedRun], *, others: int, now: float, policy: Policy) -> tuple[EndedRun, ...]:
    """The runs to forget, those that ended first first.

    `others`: bytes of all that is no ended run's. `now`: by the clock that wrote the ends. A run that ended
    in the future is as new as one that ends now: the clock was set back.
    """
    oldest_first = sorted(ended, key=lambda run: (run.ended_at, run.run_id, run.incarnation))
    total = others + sum(run.size for run in oldest_first)
    left = len(oldest_first)
    forgotten: list[EndedRun] = []
    for run in oldest_first:
        age = now - run.ended_at
        if age < KEPT_AT_LEAST:
            break
        if age < policy.age and left <= policy.count and total <= policy.size:
            break
        forgotten.append(run)
        left -= 1
        total -= run.size
    return tuple(forgotten)
