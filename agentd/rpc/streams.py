"""Streams that agentd can end with a last word, and that say something while nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, TypeVar

from agentd.api.types import StreamEnd

T = TypeVar("T")

Ending = asyncio.Future[StreamEnd]
"""Done once the server wants the stream to end."""


class OpenStreams:
    """The server streams that are open now."""

    def __init__(self) -> None:
        self._endings: set[Ending] = set()
        self._closed: StreamEnd | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Ending]:
        """The ending of one stream, while the block runs."""
        ending: Ending = asyncio.get_running_loop().create_future()
        self._endings.add(ending)
        if self._closed:
            ending.set_result(self._closed)
        try:
            yield ending
        finally:
            self._endings.discard(ending)

    def end(self, last: StreamEnd) -> None:
        """End those that are open now; later ones live."""
        for ending in self._endings:
            if not ending.done():
                ending.set_result(last)

    def close(self, last: StreamEnd) -> None:
        """End those that are open now and every later one at once."""
        self._closed = last
        self.end(last)

    def __len__(self) -> int:
        return len(self._endings)


class Quiet(enum.Enum):
    """Stands for time in which nothing came."""

    QUIET = enum.auto()


async def paced(
    source: AsyncIterator[T], ending: Ending, *, silence: float | None
) -> AsyncGenerator[T | StreamEnd | Quiet, None]:
    """What `source` gives, `QUIET` after each `silence` seconds of nothing, and the ending if it comes.

    What `source` had ready goes before the ending.
    """
    waiting: asyncio.Future[T] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(source))
            wanted: set[asyncio.Future[Any]] = {waiting, ending}
            await asyncio.wait(wanted, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                finished, waiting = waiting, None
                try:
                    item = finished.result()
                except StopAsyncIteration:
                    return
                yield item
            elif ending.done():
                yield ending.result()
                return
            else:
                yield Quiet.QUIET
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
