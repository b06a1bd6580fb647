"""The asyncio client as if it were the synchronous one, so that one test holds for both forms."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Generator
from typing import Any

from agentd_client import AsyncAgentClient, AsyncFleet, AsyncRunHandle


class Blocking:
    """An asyncio client on a loop of its own; calls block, streams are plain generators."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._inner.close())
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._inner, name)
        return self._blocking(member) if callable(member) else member

    def _blocking(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            if inspect.isasyncgen(made):
                return self._items(made)
            result = self._loop.run_until_complete(made)
            return Blocking(result, self._loop) if isinstance(result, AsyncRunHandle) else result

        return call

    def _items(self, items: Any) -> Generator[Any, None, None]:
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(items.aclose())


def blocking_fleet(*args: Any, **kwargs: Any) -> Blocking:
    """An `AsyncFleet` that reads like a `Fleet`."""
    return Blocking(AsyncFleet(*args, **kwargs), asyncio.new_event_loop())


def blocking_client(*args: Any, **kwargs: Any) -> Blocking:
    """An `AsyncAgentClient` that reads like an `AgentClient`."""
    return Blocking(AsyncAgentClient(*args, **kwargs), asyncio.new_event_loop())
