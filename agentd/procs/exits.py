"""How children end: seen through a pidfd at once, and left unreaped until their owner says so.

An unreaped child keeps its pid, and with it its session and group ids, from being given to strangers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import field

from agentd.api.signals import signal_name
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

POLL_S = 0.02
"""Between two looks where the sandbox forbids pidfd_open."""


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """How a process ended. Both numbers are `None` if another part of the program reaped it."""

    exit_code: int | None
    signal: int | None
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it was seen, on the monotonic clock."""
    time: float = field(default_factory=time.time, compare=False)
    """When it was seen, in seconds since the epoch."""

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.exit_code == 0

    @property
    def returncode(self) -> int:
        """As `subprocess` has it: minus the signal's number; 255 if nobody knows."""
        if self.signal is not None:
            return -self.signal
        return 255 if self.exit_code is None else self.exit_code

    @property
    def summary(self) -> str:
        """For people: "exit code 3", "SIGKILL"."""
        if self.signal is None:
            return "unknown exit" if self.exit_code is None else f"exit code {self.exit_code}"
        return signal_name(self.signal)


def exit_of(returncode: int) -> ExitInfo:
    """What `subprocess` and `multiprocessing` call a returncode, as an `ExitInfo`."""
    return ExitInfo(None, -returncode) if returncode < 0 else ExitInfo(returncode, None)


def peek_exit(pid: int) -> ExitInfo | None:
    """How the child ended, without reaping it; `None` while it runs."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return ExitInfo(None, None)
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return ExitInfo(result.si_status, None)
    return ExitInfo(None, result.si_status)


class ExitWatch:
    """Calls back once, from the waiter, when a process has ended."""

    def __init__(
        self,
        waiter: Waiter,
        pid: int,
        on_exit: Callable[[ExitInfo], object],
        *,
        peek: Callable[[], ExitInfo | None] | None = None,
        sentinel: int | None = None,
    ) -> None:
        """`peek` tells how it ended, for a child of this process by default as `peek_exit`.

        `sentinel`: a descriptor that is readable once `peek` can tell; for processes that are not children.
        It stays the caller's, who closes it after the watch.
        """
        self._waiter = waiter
        self._peek = peek if peek is not None else lambda: peek_exit(pid)
        self._on_exit = on_exit
        self._pidfd = None if sentinel is not None else _open_pidfd(pid)
        self._event = self._pidfd if sentinel is None else sentinel
        if self._event is None:
            waiter.add_pump(self._poll)
        else:
            waiter.add(self._event, self.look)

    def look(self) -> None:
        """Call back now if the process has ended and nobody was told yet."""
        info = self._peek() if self._waiting else None
        if info is not None:
            self.close()
            self._on_exit(info)

    def close(self) -> None:
        """Watch no longer."""
        if not self._waiting:
            return
        self._waiting = False
        if self._event is None:
            self._waiter.remove_pump(self._poll)
        else:
            self._waiter.remove(self._event)
        if self._pidfd is not None:
            os.close(self._pidfd)

    _waiting = True

    def _poll(self, now: float) -> float | None:
        self.look()
        # Told just now: whoever waits for that must look.
        return now + POLL_S if self._waiting else now


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
