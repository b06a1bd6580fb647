"""What is asked of agentd before it can listen: neither a handover nor a hangup ends it by default action.

Imports next to nothing: it is there before anything that takes time.
"""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGUSR2, signal.SIGHUP)
_heard: set[int] = set()


def hold_signals() -> None:
    """Take note of these signals from here on. For the main thread."""
    for signum in _SIGNALS:
        # Not blocked: what agentd starts would have them blocked as well.
        signal.signal(signum, _note)


def was_asked(signum: int) -> bool:
    """Whether the signal has come before somebody else listened to it."""
    return signum in _heard


def _note(signum: int, _frame: FrameType | None) -> None:
    _heard.add(signum)
