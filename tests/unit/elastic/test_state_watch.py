"""Which processes are stuck in the kernel, and for how long one waits to say so."""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.agent.server.uninterruptible import TIMEOUT_VARIABLE, StateWatch, timeout_from
from agentd.procs.procfs import ProcessStat


class Proc:
    """A /proc that a test writes: pid -> (state, start time)."""

    def __init__(self) -> None:
        self.now: dict[int, tuple[str, int]] = {}

    def __call__(self, pid: int) -> ProcessStat | None:
        if pid not in self.now:
            return None
        state, start_time = self.now[pid]
        return ProcessStat(pid=pid, state=state, parent=1, group=pid, session=pid, start_time=start_time)


@pytest.mark.parametrize(
    ("looks", "stuck"),
    [
        ([(0, "D"), (10, "D")], True),
        ([(0, "D"), (9.9, "D")], False),
        ([(0, "D")], False),
        ([(0, "S"), (10, "D")], False),
        ([(0, "D"), (5, "S"), (10, "D")], False),
        ([(0, "D"), (5, "R"), (6, "D"), (16, "D")], True),
        ([(0, "D"), (5, "gone"), (10, "D")], False),
        ([(0, "D"), (5, "recycled"), (10, "recycled")], False),
        ([(0, "D"), (5, "recycled"), (15, "recycled")], True),
        ([(0, "D"), (5, "unasked"), (10, "D")], False),
        ([(0, "D"), (10, "D"), (11, "Z")], False),
        ([(0, "T"), (100, "T")], False),
    ],
)
def test_stuck_is_d_at_every_look_for_the_whole_time(looks: list[tuple[float, str]], stuck: bool) -> None:
    proc = Proc()
    watch = StateWatch(10, proc)
    found = frozenset[int]()
    for now, state in looks:
        proc.now = {"gone": {}, "recycled": {7: ("D", 2)}}.get(state, {7: (state, 1)})
        found = watch.look([] if state == "unasked" else [7], now)
    assert found == (frozenset({7}) if stuck else frozenset())


def test_each_process_is_judged_by_itself() -> None:
    proc = Proc()
    watch = StateWatch(10, proc)
    proc.now = {1: ("D", 1), 2: ("S", 1), 3: ("D", 1)}
    watch.look([1, 2, 3], 0)
    proc.now = {1: ("D", 1), 2: ("D", 1), 3: ("S", 1)}
    assert watch.look([1, 2, 3], 10) == {1}
    proc.now[3] = ("D", 1)
    assert watch.look([3, 2, 1, 1], 20) == {1, 2}


@given(st.lists(st.tuples(st.floats(0, 8), st.sampled_from(["D", "S", "gone", "new"])), max_size=40))
def test_it_agrees_with_the_plain_reading_of_the_rule(steps: list[tuple[float, str]]) -> None:
    proc = Proc()
    watch = StateWatch(10, proc)
    now, start_time, history = 0.0, 1, list[tuple[float, int | None]]()
    for gap, state in steps:
        now += gap
        start_time += state == "new"
        proc.now = {} if state == "gone" else {7: ("D" if state == "new" else state, start_time)}
        history.append((now, start_time if state in {"D", "new"} else None))
        run = []
        for at, who in reversed(history):
            if who != start_time:
                break
            run.append(at)
        expected = bool(run) and now - run[-1] >= 10
        assert (7 in watch.look([7], now)) == expected


def test_by_default_it_reads_proc() -> None:
    watch = StateWatch(1e-9)
    gone = os.getpid()
    assert watch.look([gone, 2**22 + 1], 0) == frozenset()
    assert watch.look([gone, 2**22 + 1], 1) == frozenset()


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        (None, None, None),
        (None, "", None),
        (None, "30", 30.0),
        (None, " 0.5 ", 0.5),
        (None, "0", None),
        (None, "-1", None),
        (None, "inf", None),
        (20, "30", 20.0),
        (20, "nonsense", 20.0),
        (0, "30", None),
        (-5, "30", None),
        ("15", None, 15.0),
    ],
)
def test_the_constructor_beats_the_environment_and_nothing_above_0_is_off(
    value: float | str | None, text: str | None, expected: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert timeout_from(value, {} if text is None else {TIMEOUT_VARIABLE: text}) == expected
    assert not caplog.records


@pytest.mark.parametrize(("value", "text"), [(None, "soon"), (None, "nan"), ("soon", "30")])
def test_what_cannot_be_read_is_off_with_a_warning(
    value: str | None, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert timeout_from(value, {TIMEOUT_VARIABLE: text}) is None
    assert "is no number of seconds" in caplog.text
