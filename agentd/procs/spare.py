"""A descriptor kept back for what needs an answer also at the limit: is it alive, what is left of it.

Without one, a process that has as many files open as it may would take everybody for dead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

NO_ANSWER = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing about the file that was to be opened, not even that it is gone."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE)
_PATIENCE_S = 1.0
_PAUSE_S = 0.001


class Spare:
    """One descriptor, for one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = _opened()

    def lend(self, call: Callable[[], T]) -> T:
        """What `call` answers, with one descriptor more to be had than before. Raises what it raises."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            try:
                return _answered(call)
            finally:
                self._fd = _opened()

    def close(self) -> None:
        """Keep none back any more."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None


def _answered(call: Callable[[], T]) -> T:
    """Another thread may be first to take what was given back; all who ask here need it for a moment only."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno not in _EXHAUSTED or time.monotonic() >= until:
                raise
        time.sleep(_PAUSE_S)


def _opened() -> int | None:
    with contextlib.suppress(OSError):
        return os.open("/", os.O_PATH | os.O_CLOEXEC)
    return None


_spare = Spare()


def asked(call: Callable[[], T]) -> T:
    """What `call` answers, which opens one file at most at a time; with the spare descriptor if need be."""
    try:
        return call()
    except OSError as error:
        if error.errno not in _EXHAUSTED:
            raise
    return _spare.lend(call)
