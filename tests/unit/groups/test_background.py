"""What goes on beside something else ends with it."""

from __future__ import annotations

import asyncio

import pytest

from agentd.groups import background
from agentd.groups.background import Background

pytestmark = pytest.mark.asyncio


async def test_what_is_late_has_given_everything_back_when_it_is_closed() -> None:
    told: list[str] = []

    async def hold() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            told.append("given back")

    beside = Background()
    beside.begin(hold())
    await beside.close(0.01)
    assert told == ["given back"]


async def test_closing_is_bounded_also_where_a_task_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LAST_WORDS_S", 0.05)
    release = asyncio.Event()

    async def stay() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    beside = Background()
    task = asyncio.get_running_loop().create_task(stay())
    beside.keep(task)
    await asyncio.wait_for(beside.close(), 5)
    assert not task.done()
    release.set()
    await task


async def test_a_failure_is_told_and_a_cancellation_is_none() -> None:
    failures: list[BaseException] = []

    async def fail() -> None:
        raise OSError("full")

    beside = Background(failures.append)
    beside.begin(fail())
    beside.begin(asyncio.sleep(600))
    await beside.close(0.01)
    assert [str(error) for error in failures] == ["full"]
