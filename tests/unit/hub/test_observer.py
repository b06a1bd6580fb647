"""Nobody is judged by a time in which the judge itself did not run (rule 10)."""

from __future__ import annotations

import pytest

from agentd.hub.observer import OwnTime


def test_own_time_follows_the_clock_while_ticks_come() -> None:
    own = OwnTime(100.0, step=0.25)
    for tick in range(1, 101):
        assert own.tick(100.0 + tick * 0.1)
    assert own.at(110.05) == pytest.approx(110.05)


@pytest.mark.parametrize("gap", [0.3, 5.0, 3600.0])
def test_gap_between_two_ticks_is_added_to_every_lease(gap: float) -> None:
    own = OwnTime(100.0, step=0.25)
    own.tick(100.1)
    assert own.at(100.1 + gap) == pytest.approx(100.35)
    assert not own.tick(100.1 + gap), "what was said meanwhile is still to be read"
    assert own.tick(100.2 + gap)
    assert own.at(100.2 + gap) == pytest.approx(100.45)


def test_own_time_never_goes_back() -> None:
    own = OwnTime(100.0, step=0.25)
    own.tick(100.2)
    assert own.at(99.0) == pytest.approx(100.2)


def test_what_was_lost_in_gaps_is_told_while_it_is_fresh() -> None:
    own = OwnTime(100.0, step=0.25)
    own.tick(100.2)
    assert own.lost(100.4, within=10.0) == 0.0
    assert own.lost(106.45, within=10.0) == pytest.approx(6.0), "also before the tick that ends the gap"
    own.tick(106.45)
    own.tick(106.6)
    assert own.lost(110.0, within=10.0) == pytest.approx(6.0 + 3.15)
    own.tick(110.0)
    assert own.lost(117.0, within=3.0) == pytest.approx(6.75), "older gaps are forgotten"
