"""Words from one thread to another that waits in a `Waiter`."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """`put` from any thread; `take` where `fileno` is watched. Nothing is lost, and the order stays.

    It has a descriptor of its own, because that of a foreign `Waiter` may be closed while another thread
    is about to write to it.
    """

    def __init__(self) -> None:
        self._words: deque[T] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Readable while there is something to take."""
        return self._event

    def put(self, word: T) -> None:
        """Leave a word, and wake whoever waits for it."""
        self._words.append(word)
        os.eventfd_write(self._event, 1)

    def take(self) -> list[T]:
        """All words that are there, oldest first."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        taken = []
        while self._words:
            taken.append(self._words.popleft())
        return taken

    def close(self) -> None:
        """Give the descriptor back. Nobody may put any more."""
        os.close(self._event)
