"""`configure` and `expires`: what is acquired and released, and under which name."""

from __future__ import annotations

import inspect
import time

import pytest

from agentd.elastic import timer
from agentd.elastic.timer import api


class Recorder(timer.TimerClient):
    def __init__(self, broken_release: bool = False) -> None:
        self.calls: list[tuple[str, str]] = []
        self.ends: list[float] = []
        self.broken_release = broken_release

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        self.calls.append(("acquire", scope_id))
        self.ends.append(expiration_time)

    def release(self, scope_id: str) -> None:
        self.calls.append(("release", scope_id))
        if self.broken_release:
            raise BrokenPipeError("no server")


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_timer_client", None)


def line_here() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_timer_is_named_after_the_line_that_sets_it_so_that_nested_ones_do_not_meet() -> None:
    client = Recorder()
    with timer.expires(5, client=client):
        first = line_here() - 1
        with timer.expires(5, client=client):
            second = line_here() - 1
    outer, inner = f"{__file__}#{first}", f"{__file__}#{second}"
    assert client.calls == [("acquire", outer), ("acquire", inner), ("release", inner), ("release", outer)]


def test_it_ends_after_so_many_seconds_of_the_epoch() -> None:
    client = Recorder()
    before = time.time()
    with timer.expires(after=60, scope="step", client=client):
        pass
    assert before + 60 <= client.ends[0] <= time.time() + 60


def test_the_configured_client_is_used_unless_one_is_given() -> None:
    configured, given = Recorder(), Recorder()
    timer.configure(configured)
    with timer.expires(1, "a"):
        pass
    with timer.expires(1, "b", given):
        pass
    assert configured.calls == [("acquire", "a"), ("release", "a")]
    assert given.calls == [("acquire", "b"), ("release", "b")]


def test_without_a_client_entering_says_what_to_call() -> None:
    guard = timer.expires(1)
    with pytest.raises(RuntimeError, match="configure"):
        guard.__enter__()


def test_a_decorated_function_takes_the_client_that_is_configured_when_it_is_called() -> None:
    @timer.expires(1, "step")
    def step() -> int:
        return 3

    client = Recorder()
    timer.configure(client)
    assert [step(), step()] == [3, 3]
    assert client.calls == [("acquire", "step"), ("release", "step")] * 2


def test_an_error_of_the_code_releases_and_is_not_hidden_by_a_broken_release() -> None:
    client = Recorder(broken_release=True)
    with pytest.raises(KeyError, match="mine"):
        with timer.expires(1, "step", client):
            raise KeyError("mine")
    assert client.calls[-1] == ("release", "step")


def test_a_broken_release_after_good_code_is_told() -> None:
    with pytest.raises(BrokenPipeError):
        with timer.expires(1, "step", Recorder(broken_release=True)):
            pass


def test_requests_are_equal_by_value() -> None:
    assert timer.TimerRequest(1, "a", 2.0) == timer.TimerRequest(1, "a", 2.0)
    assert timer.TimerRequest(1, "a", 2.0) != timer.TimerRequest(1, "b", 2.0)
    assert timer.FileTimerRequest(1, "a", 2.0, 9) == timer.FileTimerRequest(1, "a", 2.0, 9)
    assert timer.FileTimerRequest(1, "a", 2.0, 9) != timer.FileTimerRequest(1, "a", 2.0, 15)
    assert timer.FileTimerRequest(1, "a", 2.0) != object()
