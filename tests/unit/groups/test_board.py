"""The board shows the newest snapshot of each run, and a slow watcher misses nothing final."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentd.api.errors import DeviceInUse, RunNotFound
from agentd.api.types import Phase, RunStatus, StreamEnd, StreamEndCause
from agentd.groups.board import Board
from agentd.groups.devices import DeviceBook

pytestmark = pytest.mark.asyncio


def status(
    run_id: str = "job", incarnation: int = 1, phase: Phase = Phase.RUNNING, round: int = 0
) -> RunStatus:
    return RunStatus(run_id=run_id, incarnation=incarnation, phase=phase, round=round)


async def soon(stream: AsyncIterator[RunStatus | StreamEnd]) -> RunStatus | StreamEnd:
    return await asyncio.wait_for(anext_of(stream), 5.0)


async def anext_of(stream: AsyncIterator[RunStatus | StreamEnd]) -> RunStatus | StreamEnd:
    return await stream.__anext__()


async def test_revisions_grow_over_all_runs_and_over_restarts() -> None:
    board = Board("n", first_revision=100)
    revisions = [board.publish(status(run_id)).revision for run_id in ("a", "b", "a")]
    assert revisions == [101, 102, 103]


async def test_a_run_without_an_incarnation_is_the_newest() -> None:
    board = Board("n")
    board.publish(status(incarnation=5))
    board.publish(status(incarnation=9))
    board.publish(status(incarnation=5, round=3))
    assert board.get("job").incarnation == 9
    assert board.get("job", 5).round == 3
    with pytest.raises(RunNotFound):
        board.get("job", 7)
    board.forget(("job", 9))
    with pytest.raises(RunNotFound):
        board.get("job")


async def test_a_watch_gives_the_present_first_then_the_newest_and_ends_after_the_last() -> None:
    board = Board("n")
    board.publish(status(round=1))
    stream = board.watch("job", 0, 0)
    first = await soon(stream)
    for round_ in range(2, 50):
        board.publish(status(round=round_))
    board.publish(status(phase=Phase.SUCCEEDED, round=50))
    second, third = await soon(stream), await soon(stream)
    with pytest.raises(StopAsyncIteration):
        await anext_of(stream)
    assert isinstance(first, RunStatus)
    assert first.round == 1
    assert isinstance(second, RunStatus)
    assert second.round == 50
    assert third == StreamEnd(cause=StreamEndCause.FINISHED)


async def test_a_watch_resumes_behind_what_was_seen() -> None:
    board = Board("n")
    seen = board.publish(status(round=1))
    stream = board.watch("job", 0, seen.revision)
    waiting = asyncio.ensure_future(anext_of(stream))
    await asyncio.sleep(0)
    board.publish(status(run_id="other"))
    newer = board.publish(status(round=2))
    assert await asyncio.wait_for(waiting, 5.0) == newer


async def test_a_watch_of_an_ended_run_that_was_seen_just_ends() -> None:
    board = Board("n")
    seen = board.publish(status(phase=Phase.FAILED))
    assert isinstance(await soon(board.watch("job", 0, seen.revision)), StreamEnd)


async def test_a_watch_of_all_runs_goes_on() -> None:
    board = Board("n")
    board.publish(status("a", phase=Phase.SUCCEEDED))
    stream = board.watch("", 0, 0)
    await soon(stream)
    board.publish(status("b"))
    found = await soon(stream)
    assert isinstance(found, RunStatus)
    assert found.run_id == "b"


async def test_a_watcher_that_goes_leaves_nothing_behind() -> None:
    board = Board("n")
    board.publish(status())
    stream = board.watch("job", 0, 0)
    await soon(stream)
    assert len(board._watchers) == 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert len(board._watchers) == 0


async def test_waiting_for_a_change_ends_with_it() -> None:
    board = Board("n")
    seen = board.publish(status(round=1))
    waiting = asyncio.ensure_future(board.wait_change("job", 0, seen.revision))
    await asyncio.sleep(0)
    board.publish(status(round=2))
    assert (await asyncio.wait_for(waiting, 5.0)).round == 2


async def test_a_device_belongs_to_one_run_at_a_time() -> None:
    book = DeviceBook()
    book.reserve("a", [0, 1])
    book.reserve("a", [1, 2])
    with pytest.raises(DeviceInUse) as refusal:
        book.reserve("b", [3, 2])
    assert refusal.value.facts == {"device": "2", "run_id": "a"}
    book.reserve("b", [3])
    book.release("a")
    book.reserve("b", [0, 1, 2])
