"""What the test process itself is to the kernel and may not stay otherwise: later tests inherit it.

Blocked signals and ignored ones go on to every process that is started; a subreaper adopts strangers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from agentd.procs import prctl

# The watchdog of the test itself takes it, and lets go of it as soon as a test has failed.
_NOT_THE_TESTS = signal.SIGALRM

# `signal` has it so: None is a handler that Python did not set.
Handler = Callable[[int, FrameType | None], Any] | int | None


@dataclass(frozen=True)
class OwnState:
    """The calling thread's blocked signals, Python's handlers, and whether this process is a subreaper."""

    blocked: frozenset[int]
    handlers: dict[int, Handler]
    is_subreaper: bool

    @classmethod
    def now(cls) -> OwnState:
        return cls(
            frozenset(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            {
                int(number): signal.getsignal(number)
                for number in signal.valid_signals()
                if number != _NOT_THE_TESTS
            },
            prctl.is_subreaper(),
        )

    def put_back(self) -> list[str]:
        """Make the process what it was; answers what was not."""
        found = list(self._changes(OwnState.now()))
        if found:
            # Ignored or handled again before it is let through.
            for number, handler in self.handlers.items():
                if handler is not None and signal.getsignal(number) != handler:
                    signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked)
            prctl.become_subreaper(self.is_subreaper)
        return found

    def _changes(self, now: OwnState) -> Iterator[str]:
        for number in sorted(self.blocked ^ now.blocked):
            yield f"{_name(number)} is {'blocked' if number in now.blocked else 'no longer blocked'}"
        for number, handler in self.handlers.items():
            if now.handlers[number] != handler:
                yield f"{_name(number)} has the handler {now.handlers[number]!r}, had {handler!r}"
        if now.is_subreaper != self.is_subreaper:
            yield f"the process is {'a' if now.is_subreaper else 'no longer a'} subreaper"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
