"""What signals ask of the daemon, next to what was asked before."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator

import pytest

from agentd.daemon.wishes import Wishes


@pytest.fixture(autouse=True)
def the_signals_of_before() -> Iterator[None]:
    """The daemon ignores them at its end, which would go on to all that later tests start."""
    signums = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
    former = {signum: signal.getsignal(signum) for signum in signums}
    yield
    for signum, handler in former.items():
        signal.signal(signum, handler)


async def _hear(wishes: Wishes, *signums: signal.Signals) -> None:
    with wishes.heard(None):
        for signum in signums:
            os.kill(os.getpid(), signum)
            # One at a time: what the loop is told of two at once has no order.
            await asyncio.sleep(0.02)


def test_a_signal_during_a_handover_ends_nothing_and_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wishes = Wishes(keeps_hosts=True)
    asyncio.run(_hear(wishes, signal.SIGUSR2, signal.SIGTERM))
    assert (wishes.leave.is_set(), wishes.hand_over, wishes.leave_now.is_set()) == (True, True, False)
    assert wishes.reason == "SIGUSR2"
    assert [record.getMessage() for record in caplog.records] == ["handing over already, signal ignored"]


def test_where_nothing_can_be_handed_over_a_second_signal_ends_the_shutdown_at_once() -> None:
    wishes = Wishes(keeps_hosts=False)
    asyncio.run(_hear(wishes, signal.SIGUSR2, signal.SIGTERM))
    assert (wishes.hand_over, wishes.leave_now.is_set(), wishes.reason) == (False, True, "SIGUSR2")


def test_a_handover_asked_for_during_a_shutdown_changes_nothing() -> None:
    wishes = Wishes(keeps_hosts=True)
    asyncio.run(_hear(wishes, signal.SIGTERM, signal.SIGUSR2))
    assert (wishes.hand_over, wishes.leave_now.is_set(), wishes.reason) == (False, False, "SIGTERM")
