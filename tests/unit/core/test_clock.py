"""A clock that was set far ahead makes nothing old before it has stood for a day."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.clock import SETTLES, TOLERANCE, Reading, Trust, as_text, from_text, look, sentence

DAY = 86_400.0
START = Trust(last=Reading(wall=1e9, boot=100.0, boot_id="b"))


def after(trust: Trust, elapsed: float, step: float = 0.0, boot_id: str = "b") -> Trust:
    """Another look, so much later, by a clock that was set by `step` meanwhile."""
    last = trust.last
    boot = last.boot + elapsed if boot_id == last.boot_id else 10.0
    return look(trust, Reading(wall=last.wall + elapsed + step, boot=boot, boot_id=boot_id))


def test_a_clock_that_goes_right_is_believed() -> None:
    trust = after(after(START, 600.0), 30 * DAY)
    assert trust.now == trust.last.wall
    assert sentence(trust) == ""


@pytest.mark.parametrize("step", [-TOLERANCE, -1.0, 1.0, TOLERANCE])
def test_a_small_correction_is_believed_at_once(step: float) -> None:
    assert after(START, 10.0, step).now == START.last.wall + 10.0 + step


def test_a_day_ahead_is_not_believed_and_set_back_is_forgotten() -> None:
    ahead = after(START, 10.0, DAY)
    assert ahead.now == START.last.wall + 10.0
    assert "24.0 h" in sentence(ahead)
    later = after(ahead, 3600.0)
    assert later.now == START.last.wall + 3610.0
    back = after(later, 10.0, -DAY)
    assert (back.now, back.ahead, sentence(back)) == (back.last.wall, 0.0, "")


def test_a_day_back_is_believed_at_once() -> None:
    back = after(START, 10.0, -DAY)
    assert back.now == START.last.wall + 10.0 - DAY
    assert sentence(back) == ""


def test_it_is_believed_when_it_has_stood_for_a_day() -> None:
    trust = after(START, 10.0, DAY)
    for _ in range(23):
        trust = after(trust, 3600.0)
        assert trust.ahead == DAY
    trust = after(trust, 3600.0)
    assert (trust.ahead, trust.now) == (0.0, trust.last.wall)


def test_the_next_agentd_of_the_boot_sees_that_the_clock_was_set_meanwhile() -> None:
    noted = from_text(as_text(START))
    assert noted == START
    assert after(START, 5 * DAY).now == START.last.wall + 5 * DAY
    assert after(START, 5 * DAY, 30 * DAY).now == START.last.wall + 5 * DAY


def test_a_machine_that_was_off_makes_nothing_old_at_once_and_complains_of_no_clock() -> None:
    trust = after(START, 30 * DAY, boot_id="another")
    assert trust.now == START.last.wall
    assert sentence(trust) == ""
    half = after(trust, SETTLES / 2, boot_id="another")
    assert half.now == START.last.wall + SETTLES / 2
    assert after(half, SETTLES / 2, boot_id="another").now == trust.last.wall + SETTLES


@pytest.mark.parametrize("text", ["", "{", "[]", '{"last": 1}', as_text(START).replace("100.0", "NaN")])
def test_a_note_that_nobody_can_read_is_none(text: str) -> None:
    assert from_text(text) is None


@given(st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from([0.0, DAY, -DAY, 99 * DAY, 30.0])), max_size=30))
def test_what_is_believed_is_never_later_than_the_clock_and_never_runs_ahead_of_time(
    looks: list[tuple[float, float]],
) -> None:
    trust = START
    for elapsed, step in looks:
        before, trust = trust, after(trust, elapsed, step)
        assert trust.now <= trust.last.wall
        settled = before.stood + elapsed >= SETTLES
        assert settled or trust.now - before.now <= elapsed + max(TOLERANCE, before.ahead * (step < 0)) + 1e-3
