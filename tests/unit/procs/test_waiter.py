"""The one wait: what it serves, when it returns, and what callbacks may do to it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from agentd.procs.waiter import Waiter


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    with Waiter() as waiter:
        yield waiter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_it_calls_back_for_what_is_readable_until_removed(waiter: Waiter, pipe: tuple[int, int]) -> None:
    calls: list[str] = []
    waiter.add(pipe[0], lambda: calls.append("read"))
    os.write(pipe[1], b"x")
    waiter.wait(None)
    waiter.wait(None)
    waiter.remove(pipe[0])
    waiter.wait(time.monotonic() + 0.01)
    assert calls == ["read", "read"]


def test_added_again_the_new_callbacks_count(waiter: Waiter, pipe: tuple[int, int]) -> None:
    calls: list[str] = []
    waiter.add(pipe[1], None, writable=lambda: calls.append("old"))
    waiter.add(pipe[1], None, writable=lambda: calls.append("new"))
    waiter.wait(None)
    assert calls == ["new"]


def test_a_callback_may_remove_another_of_the_same_batch(waiter: Waiter) -> None:
    ends = [os.pipe() for _ in range(2)]
    calls: list[int] = []

    def take(own: int, other: int) -> None:
        calls.append(own)
        waiter.remove(other)

    for (read, _), (other, _) in zip(ends, reversed(ends), strict=True):
        waiter.add(read, lambda own=read, other=other: take(own, other))  # type: ignore[misc]
    for _, write in ends:
        os.write(write, b"x")
    waiter.wait(None)
    assert len(calls) == 1
    for pair in ends:
        for fd in pair:
            os.close(fd)


def test_what_a_callback_raises_passes_out_and_the_next_wait_works(
    waiter: Waiter, pipe: tuple[int, int]
) -> None:
    def fail() -> None:
        os.read(pipe[0], 1)
        raise KeyError("told")

    waiter.add(pipe[0], fail)
    os.write(pipe[1], b"x")
    with pytest.raises(KeyError, match="told"):
        waiter.wait(None)
    waiter.wait(time.monotonic() + 0.01)


def test_a_pump_bounds_the_wait_by_its_wish(waiter: Waiter) -> None:
    waiter.add_pump(lambda now: now + 0.02)
    before = time.monotonic()
    waiter.wait(None)
    assert 0.02 <= time.monotonic() - before < 10


def test_a_pump_may_remove_itself(waiter: Waiter) -> None:
    calls: list[float] = []

    def once(now: float) -> None:
        calls.append(now)
        waiter.remove_pump(once)

    waiter.add_pump(once)
    waiter.wait(time.monotonic())
    waiter.wait(time.monotonic())
    assert len(calls) == 1


def test_a_deadline_that_is_over_serves_what_is_there_and_returns(
    waiter: Waiter, pipe: tuple[int, int]
) -> None:
    calls: list[str] = []
    waiter.add(pipe[0], lambda: calls.append("read"))
    os.write(pipe[1], b"x")
    waiter.wait(time.monotonic() - 5)
    assert calls == ["read"]


def test_wake_from_a_thread_ends_the_wait(waiter: Waiter) -> None:
    thread = threading.Timer(0.02, waiter.wake)
    thread.start()
    waiter.wait(time.monotonic() + 60)
    thread.join()


def test_many_wakes_before_a_wait_are_one(waiter: Waiter) -> None:
    for _ in range(100_000):
        waiter.wake()
    before = time.monotonic()
    waiter.wait(before + 60)
    waiter.wait(time.monotonic() + 0.01)
    assert time.monotonic() - before < 50


def test_a_signal_before_the_wait_ends_it_too(waiter: Waiter) -> None:
    former = signal.signal(signal.SIGUSR1, lambda _signum, _frame: None)
    try:
        with waiter.woken_by_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
            before = time.monotonic()
            waiter.wait(before + 60)
            assert time.monotonic() - before < 50
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert signal.set_wakeup_fd(-1) == -1


def test_wait_until_tells_whether_the_condition_holds(waiter: Waiter) -> None:
    assert waiter.wait_until(lambda: True, None)
    assert not waiter.wait_until(lambda: False, time.monotonic() + 0.01)


def test_close_gives_back_every_descriptor_and_may_be_repeated() -> None:
    before = len(os.listdir("/proc/self/fd"))
    waiter = Waiter()
    waiter.close()
    waiter.close()
    waiter.wake()
    assert len(os.listdir("/proc/self/fd")) == before
