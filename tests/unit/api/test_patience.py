"""A bounded wait: what it gives, what it ends, and that it never costs a cancellation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import agentd
import agentd_client
from agentd.api.patience import within

BOUND_S = 5.0
SOON_S = 0.01
MANY = 100


class Work:
    """Something to wait for, which says how it ended."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.ended = False

    async def done(self) -> int:
        try:
            return await self.answer
        finally:
            self.ended = True


@pytest.mark.asyncio
async def test_it_gives_what_the_work_gives_or_raises() -> None:
    work = Work()
    work.answer.set_result(7)
    assert await within(BOUND_S, work.done()) == 7
    assert await within(None, work.answer) == 7
    failing = Work()
    failing.answer.set_exception(KeyError("why"))
    with pytest.raises(KeyError, match="why"):
        await within(BOUND_S, failing.done())


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", [0.0, SOON_S])
async def test_work_that_is_late_has_ended_when_that_is_said(seconds: float) -> None:
    work = Work()
    with pytest.raises(asyncio.TimeoutError):
        await within(seconds, work.done())
    assert work.answer.cancelled()


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_counts_whenever_it_comes(turns: int) -> None:
    """`turns`: of the loop, between the end of the work and the cancellation."""
    work = Work()
    rounds = 0

    async def again_and_again() -> None:
        nonlocal rounds
        while rounds < MANY:
            await within(BOUND_S, asyncio.shield(work.answer))
            rounds += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(again_and_again())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.answer.set_result(7)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=BOUND_S)
    assert task.cancelled(), f"it went on for {rounds} rounds"


@pytest.mark.asyncio
async def test_a_caller_who_is_cancelled_leaves_no_work_behind() -> None:
    work = Work()
    task = asyncio.create_task(within(BOUND_S, work.done()))
    await asyncio.sleep(SOON_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


def test_nobody_waits_in_the_way_that_forgets_a_cancellation() -> None:
    roots = [Path(package.__path__[0]) for package in (agentd, agentd_client)]
    those = [
        str(file) for root in roots for file in root.rglob("*.py") if "asyncio.wait_for(" in file.read_text()
    ]
    assert those == [], "use agentd.api.patience.within"
