"""A process of the standard library's `multiprocessing`, as a crew wants its leaders.

Spawned and forked ones are children: unreaped until the crew has swept their session. Those of a fork server
are its children; what they were can only be asked of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from multiprocessing import process as registry
from multiprocessing.process import BaseProcess

from agentd.procs.exits import ExitInfo, ExitWatch, exit_of, peek_exit
from agentd.procs.identity import ProcessIdentity, identify, send_group_signal
from agentd.procs.lifeline import Lifeline
from agentd.procs.waiter import Waiter


class FunctionChild:
    """A started process; `is_child` tells whether of this very process."""

    def __init__(self, process: BaseProcess, *, is_child: bool, lifeline: Lifeline) -> None:
        """`lifeline`: what it lives by, closed once it has ended."""
        self._process = process
        self._is_child = is_child
        self._lifeline = lifeline
        self._closed = False
        self.started_at = time.time()
        """Seconds since the epoch."""
        pid = process.pid
        assert pid is not None, "the process was started"
        # Without an identity: a fork server has reaped it already.
        self.identity = identify(pid) or ProcessIdentity(pid, 0)
        # Else the next start of any process, anywhere in this program, would reap it.
        getattr(registry, "_children", set()).discard(process)

    @property
    def pid(self) -> int:
        """Its pid, and the id of its session and process group, once it has begun."""
        return self.identity.pid

    def signal_group(self, signum: int) -> None:
        """Signal its process group, or it alone while it has not begun. Never reaches a stranger."""
        send_group_signal(self.identity, signum)

    def watch(self, waiter: Waiter, on_exit: Callable[[ExitInfo], object]) -> ExitWatch:
        """Have `on_exit` called from the waiter when it has ended. A child is not reaped by that."""
        sentinel = None if self._is_child else self._process.sentinel
        return ExitWatch(waiter, self.pid, on_exit, peek=self._peek, sentinel=sentinel)

    def reap(self) -> None:
        """Take its exit status, if it has ended, and give back what it holds here."""
        if self._closed or (self._process.exitcode is None and identify(self.pid) == self.identity):
            return
        self._closed = True
        with contextlib.suppress(ValueError):
            self._process.close()
        self._lifeline.close()

    def _peek(self) -> ExitInfo | None:
        if self._is_child:
            info = peek_exit(self.pid)
            if info is None or info != ExitInfo(None, None):
                return info
        # Not ours to ask the kernel for, or reaped behind our back by a call of `multiprocessing`.
        code = self._process.exitcode
        if code is None:
            return ExitInfo(None, None) if self._is_child else None
        return exit_of(code)
