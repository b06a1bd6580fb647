"""Tasks that nobody waits for before the end: kept alive until they are done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Background:
    """What goes on beside the answers of a node."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Do it as a task of its own."""
        self.keep(asyncio.get_running_loop().create_task(work))

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task that somebody else began: the loop alone would let it be collected."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, patience_s: float) -> None:
        """Wait for all of it, and cancel what is late."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience_s)
            for task in late:
                task.cancel()
