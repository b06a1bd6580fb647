"""Tasks that nobody waits for before the end: kept alive until they are done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

LAST_WORDS_S = 3.0
"""What a cancelled task has to give back what it holds: a session says its last words for two seconds."""


class Background:
    """What goes on beside something else. Used on the event loop."""

    def __init__(self, failed: Callable[[BaseException], object] | None = None) -> None:
        """`failed(error)` is called when one of the tasks has failed. None: asyncio logs it."""
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[None, None, None], name: str | None = None) -> None:
        """Do it as a task of its own."""
        self.keep(asyncio.get_running_loop().create_task(work, name=name))

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task that somebody else began: the loop alone would let it be collected."""
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def close(self, patience_s: float = 0.0) -> None:
        """Wait for all of it, cancel what is late, and wait for that to end, all of it for a bounded time."""
        for wait_s in (patience_s, LAST_WORDS_S):
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=wait_s)
                for task in late:
                    task.cancel()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._failed is not None and not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
