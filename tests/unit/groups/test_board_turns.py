"""Many who watch one run: they are told a few at a time, and what agentd itself waits for does not queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

from agentd.api.types import Phase, RunStatus, StreamEnd
from agentd.groups.board import BATCH, BATCH_EACH, Board
from tests.integration.hub import virtual_time

MANY = 4 * BATCH
RUN = RunStatus(run_id="r", incarnation=1, phase=Phase.RUNNING)


class Crowd:
    """Watchers that keep what they see."""

    def __init__(self, board: Board, count: int) -> None:
        self.seen: list[list[int]] = [[] for _ in range(count)]
        self.streams = [board.watch("r", 1, after_revision=board.get("r").revision) for _ in range(count)]
        self.tasks = [
            asyncio.ensure_future(self._watch(stream, seen))
            for stream, seen in zip(self.streams, self.seen, strict=True)
        ]

    async def _watch(self, stream: object, seen: list[int]) -> None:
        async for status in cast("AsyncGenerator[RunStatus | StreamEnd, None]", stream):
            seen.extend([status.revision] if isinstance(status, RunStatus) else [])

    @property
    def told(self) -> int:
        """How many have seen anything."""
        return sum(1 for seen in self.seen if seen)

    async def until_all_saw(self, revision: int) -> None:
        async def all_saw() -> None:
            while not all(seen and seen[-1] == revision for seen in self.seen):
                await asyncio.sleep(BATCH_EACH / 2)

        await asyncio.wait_for(all_saw(), 30)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def settle() -> None:
    """Let everything run that is ready, and no time pass."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_many_watchers_are_told_a_few_at_a_time_and_skip_what_is_old_by_then() -> None:
    async def scenario() -> None:
        board = Board("n")
        board.publish(RUN)
        crowd = Crowd(board, MANY)
        await settle()
        first = board.publish(RUN).revision
        newest = board.publish(RUN).revision
        await settle()
        assert crowd.told == BATCH, "the others wait for their turn"
        await crowd.until_all_saw(newest)
        skipped = [seen for seen in crowd.seen if first not in seen]
        assert len(skipped) >= MANY - BATCH
        await crowd.leave()

    virtual_time.run(scenario())


def test_what_agentd_itself_waits_for_comes_at_once() -> None:
    async def scenario() -> None:
        board = Board("n")
        before = board.publish(RUN).revision
        crowd = Crowd(board, MANY)
        waiting = asyncio.ensure_future(board.wait_change("r", 1, before))
        await settle()
        after = board.publish(RUN).revision
        await settle()
        assert waiting.done(), "it does not queue"
        assert waiting.result().revision == after
        assert crowd.told < MANY
        await crowd.leave()

    virtual_time.run(scenario())


def test_all_of_many_watchers_see_the_end() -> None:
    async def scenario() -> None:
        board = Board("n")
        board.publish(RUN)
        crowd = Crowd(board, MANY)
        await settle()
        last = board.publish(RunStatus(run_id="r", incarnation=1, phase=Phase.SUCCEEDED)).revision
        done, _ = await asyncio.wait(crowd.tasks, timeout=30)
        assert len(done) == MANY
        assert all(seen[-1] == last for seen in crowd.seen)

    virtual_time.run(scenario())


def test_watchers_that_leave_before_their_turn_are_told_nothing_and_the_others_are() -> None:
    async def scenario() -> None:
        board = Board("n")
        board.publish(RUN)
        leaving, staying = Crowd(board, MANY), Crowd(board, 2)
        await settle()
        newest = board.publish(RUN).revision
        await leaving.leave()
        assert leaving.told <= BATCH
        await staying.until_all_saw(newest)
        await staying.leave()

    virtual_time.run(scenario())
