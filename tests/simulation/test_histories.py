"""Ten thousand random histories of a hub and its members, in each of which every promise holds.

The code is the real one: hub, sessions, member sessions and the decisions of worker groups. Processes, disks,
networks and clocks are simulated (`clock`, `network`, `node`, `group`), faults are drawn (`histories`), and
`invariants` judges. A seed is one history, the same each time and everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pytest

from tests.simulation.histories import make_history
from tests.simulation.replay import live, report
from tests.simulation.world import simulated

HISTORIES = 10_000
PARTS = 8
SOAK = 100_000
SOAK_PARTS = 20


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    with simulated():
        yield


def judge(seeds: Iterable[int]) -> None:
    for seed in seeds:
        if live(make_history(seed)).breach is not None:
            pytest.fail(report(seed), pytrace=False)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_in_every_history(part: int) -> None:
    judge(range(part, HISTORIES, PARTS))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(SOAK_PARTS))
def test_every_promise_holds_in_many_more(part: int) -> None:
    judge(range(HISTORIES + part, HISTORIES + SOAK, SOAK_PARTS))


def test_a_seed_is_replayed_exactly() -> None:
    """SEED=... chooses another one and prints what happens (with -s)."""
    chosen = os.environ.get("SEED")
    history = make_history(int(chosen or 59))
    first, second = live(history, tracing=True), live(history, tracing=True)
    if chosen:
        print("", *first.lines, sep="\n")
    assert len(first.lines) > 20
    assert first.lines == second.lines
    assert first.breach is None, report(history.seed)
