"""Waiting for a condition, never for a time: returns as soon as it holds, fails with what was seen last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""For what comes at once, on a machine that has other things to do."""
FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 0.05


def wait_until(predicate: Callable[[], T], deadline: float = PATIENCE_S, *, what: str = "") -> T:
    """The first true value of `predicate`, asked again and again for at most `deadline` seconds."""
    ends, pause = time.monotonic() + deadline, FIRST_PAUSE_S
    while True:
        # The clock is read before the question: a slow predicate still gets its last chance.
        last_chance = time.monotonic() >= ends
        value = predicate()
        if value:
            return value
        if last_chance:
            raise AssertionError(_failure(predicate, deadline, what, value))
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


async def wait_until_async(
    predicate: Callable[[], T | Awaitable[T]], deadline: float = PATIENCE_S, *, what: str = ""
) -> T:
    """wait_until for a coroutine; the predicate may be one itself."""
    ends, pause = time.monotonic() + deadline, FIRST_PAUSE_S
    while True:
        last_chance = time.monotonic() >= ends
        answer = predicate()
        value: T = await answer if isinstance(answer, Awaitable) else answer
        if value:
            return value
        if last_chance:
            raise AssertionError(_failure(predicate, deadline, what, value))
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


def _failure(predicate: object, deadline: float, what: str, last: object) -> str:
    name = what or getattr(predicate, "__qualname__", repr(predicate))
    return f"waited {deadline:g} s in vain for: {name}; last seen: {last!r}"
