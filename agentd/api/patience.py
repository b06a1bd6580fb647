"""Waiting with a bound that never costs a cancellation, and waiting in step.

`asyncio.wait_for` before Python 3.12 forgets one that comes in the moment its work is done: it answers as if
nobody had cancelled, and a task that goes round and round is then waited for without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["next_beat", "within"]

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """What `work` gives or raises. Raises `asyncio.TimeoutError` when it takes longer; None: it may.

    Work that is late is cancelled and has ended by then; so it is, always, when the caller is cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            await _end(task)
    except asyncio.CancelledError:
        await _end(task)
        raise
    try:
        if task.cancelled():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        # Its error tells of this frame, which holds it: a cycle that keeps calls and connections until the
        # collector comes.
        del task


async def next_beat(interval: float) -> None:
    """Sleep until the loop's clock shows a whole multiple of `interval`, in seconds.

    For looks that are taken again and again: all that wait so are woken together, and what an idle process
    uses is its wakings.
    """
    await asyncio.sleep(interval - asyncio.get_running_loop().time() % interval)


async def _end(task: asyncio.Future[T]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # or the loop would tell of an error that nobody asks for any more
