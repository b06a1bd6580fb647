"""Signals that stop a group of workers: which they are, and how a wait learns of them.

Handlers are taken for the time of a wait and given back. torch's process context installs handlers that raise
wherever the program happens to be, and leaves them behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

__all__ = ["SignalException", "handling", "signals_to_handle"]

log = logging.getLogger(__name__)

SIGNALS_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
DEFAULT_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"


class SignalException(Exception):
    """This process got a signal that stops its agent, or its group of workers (torch's)."""

    sigval: signal.Signals
    """The signal."""

    def __init__(self, msg: str, sigval: signal.Signals) -> None:
        super().__init__(msg)
        self.sigval = sigval

    @classmethod
    def of(cls, signum: int) -> SignalException:
        """The exception for this signal to this process, in torch's words."""
        return cls(f"Process {os.getpid()} got signal: {int(signum)}", signal.Signals(signum))


def signals_to_handle() -> tuple[signal.Signals, ...]:
    """The signals that stop an agent: TORCHELASTIC_SIGNALS_TO_HANDLE, else torch's four."""
    names = os.environ.get(SIGNALS_VARIABLE) or DEFAULT_SIGNALS
    found = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            found.append(signal.Signals[name])
        except KeyError:
            log.warning("%s names no signal: %s", SIGNALS_VARIABLE, name)
    return tuple(found)


@contextlib.contextmanager
def handling(signals: Sequence[signal.Signals], handler: Callable[[int], None]) -> Iterator[None]:
    """Let `handler` take these signals for a while; the former handlers come back afterwards.

    Python hands signals to the main thread only: on another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def take(signum: int, _frame: FrameType | None) -> None:
        handler(signum)

    former = {signum: signal.signal(signum, take) for signum in signals}
    try:
        yield
    finally:
        for signum, previous in former.items():
            # None: a handler not made by Python, which signal.signal cannot put back.
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
