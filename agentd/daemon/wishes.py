"""What the world wants of the daemon: signals and the lifeline, as two events on the loop.

The first SIGTERM or SIGINT, or the end of the lifeline, asks for the shutdown; a second signal for the end at
once. SIGUSR2 asks for a handover: the next agentd goes on with what runs, and no signal turns it into a
shutdown any more. SIGHUP asks for nothing: a lost terminal must not stop training.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator

from agentd.daemon import early

log = logging.getLogger("agentd.daemon")

_LEAVING = (signal.SIGTERM, signal.SIGINT)


class Wishes:
    """Set once, never cleared."""

    def __init__(self, *, keeps_hosts: bool) -> None:
        """`keeps_hosts`: there is something to hand over. Else who asks for it gets a shutdown."""
        self._keeps_hosts = keeps_hosts
        self.leave = asyncio.Event()
        self.leave_now = asyncio.Event()
        self.hand_over = False
        """Whether it leaves its groups to the next agentd."""
        self.reason = ""

    @contextlib.contextmanager
    def heard(self, lifeline_fd: int | None) -> Iterator[None]:
        """Listen while the block runs. Signals that come later change nothing: the process is at its end."""
        loop = asyncio.get_running_loop()
        for signum in _LEAVING:
            loop.add_signal_handler(signum, self._on_signal, signum)
        loop.add_signal_handler(signal.SIGUSR2, self._on_handover)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        if early.was_asked(signal.SIGUSR2):
            self._on_handover()
        if lifeline_fd is not None:
            os.set_blocking(lifeline_fd, False)
            loop.add_reader(lifeline_fd, self._on_lifeline, lifeline_fd)
        try:
            yield
        finally:
            if lifeline_fd is not None:
                loop.remove_reader(lifeline_fd)
            _ignore(loop, *_LEAVING, signal.SIGUSR2, signal.SIGHUP)

    def _on_signal(self, signum: signal.Signals) -> None:
        if self.hand_over:
            log.info("handing over already, signal ignored", extra={"signal": signum.name})
        elif self.leave.is_set():
            log.warning("second signal, ending at once", extra={"signal": signum.name})
            self.leave_now.set()
        self._ask(signum.name)

    def ask_handover(self, reason: str = "a caller asks for a handover") -> None:
        """Leave the groups to the next agentd, unless this one goes away already."""
        if not self.leave.is_set():
            # Hosts that end with their agentd cannot be handed over: stopped in order they end better.
            self.hand_over = self._keeps_hosts
            self._ask(reason)

    def _on_handover(self) -> None:
        self.ask_handover(signal.SIGUSR2.name)

    def _on_hangup(self) -> None:
        log.info("hangup ignored", extra={"signal": "SIGHUP"})

    def _on_lifeline(self, fd: int) -> None:
        try:
            if os.read(fd, 4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_reader(fd)
        self._ask("the process that started it is gone")

    def _ask(self, reason: str) -> None:
        if not self.leave.is_set():
            self.reason = reason
            self.leave.set()


def _ignore(loop: asyncio.AbstractEventLoop, *signums: signal.Signals) -> None:
    """Instead of what the kernel does by default: a repeated wish would show a good end as a crash."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        for signum in signums:
            loop.remove_signal_handler(signum)
            signal.signal(signum, signal.SIG_IGN)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
