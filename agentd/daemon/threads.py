"""Calls that may never return, each in a thread of its own that keeps nobody from ending."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_own_thread(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """The result of `call`, or what it raised; `OSError` where the kernel gives no thread."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    # Whoever asked may have gone: nobody has to look at what became of it.
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())

    def work() -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be over by now
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear of it
                loop.call_soon_threadsafe(_fail, answer, error)
            else:
                loop.call_soon_threadsafe(_resolve, answer, result)

    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:
        _fail(answer, OSError(errno.EAGAIN, str(error)))
    return answer


def _resolve(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[T], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
