"""An interrupt while programs are started together leaves none of them, and this process as it was."""

from __future__ import annotations

import gc
import os
import signal
import threading

import pytest

from agentd.procs import forking
from agentd.procs import spawn as spawning
from agentd.procs.spawn import Order
from tests.support import leaks
from tests.support.threads import in_as_many_as_asked

ORDERS = [Order(argv=("sleep", "1000"), env=os.environ)] * 4


class Interrupted(BaseException):
    """As a `KeyboardInterrupt` is one."""


def _interrupt(_signum: int, _frame: object) -> None:
    raise Interrupted


@pytest.mark.parametrize("moment", ["before its signals are blocked", "between two forks"])
@in_as_many_as_asked
def test_an_interrupt_leaves_no_child_and_blocks_no_signal(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    libc, before = forking._libc(), set(leaks.descendants(os.getpid()))
    fork, sigprocmask, forks = libc.fork, libc.sigprocmask, iter(range(2))

    def signal_this() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def interrupted_fork() -> int:
        if next(forks, None) is None:
            signal_this()
        return int(fork())

    def interrupted_block(how: int, signals: object, former: object) -> int:
        changed = int(sigprocmask(how, signals, former))
        if signals is libc.all_signals:
            # What the handler does of a signal that came right before.
            raise Interrupted
        return changed

    if moment == "between two forks":
        monkeypatch.setattr(libc, "fork", interrupted_fork)
    else:
        monkeypatch.setattr(libc, "sigprocmask", interrupted_block)
    former = signal.signal(signal.SIGUSR1, _interrupt)
    try:
        with pytest.raises(Interrupted):
            list(spawning._forked_together(ORDERS))
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert gc.isenabled()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert set(leaks.descendants(os.getpid())) == before
