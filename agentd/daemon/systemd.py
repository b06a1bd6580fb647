"""What systemd hears while agentd lives: that its event loop turns, and one line about what it does.

Sent by the loop itself: one that hangs feeds no watchdog, so that systemd kills agentd and starts the next
one, which finds its hosts and workers as they were.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
from collections.abc import Callable, Mapping
from typing import Final

from agentd.daemon import announce

STATUS_PAUSE_S: Final = 5.0
"""The longest time until a change shows in `systemctl status`."""


async def report(status: Callable[[], str], environ: Mapping[str, str] = os.environ) -> None:
    """Feed the watchdog at half its time or sooner, and keep the status line true. Runs until cancelled."""
    if not environ.get("NOTIFY_SOCKET"):
        return
    limit_s = watchdog_s(environ, os.getpid())
    if limit_s is not None and not faulthandler.is_enabled():
        # The watchdog's SIGABRT then leaves in the log where the loop hung.
        faulthandler.enable()
    pause_s = STATUS_PAUSE_S if limit_s is None else min(STATUS_PAUSE_S, limit_s / 2)
    while True:
        news = [f"STATUS={status()}"] + (["WATCHDOG=1"] if limit_s is not None else [])
        announce.notify_systemd("\n".join(news), patience_s=0.0)
        await asyncio.sleep(pause_s)


def watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Seconds of silence after which systemd kills this process; `None` if it watches none, or another."""
    limit, watched = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(pid))
    if watched != str(pid) or not limit.isdecimal() or int(limit) == 0:
        return None
    return int(limit) / 1e6


def status_line(*, groups: int, runs: int, conditions: tuple[str, ...], leaving: str) -> str:
    """One line for `systemctl status`. `leaving`: why agentd goes away, if it does."""
    what = f"{_many(groups, 'worker group')} of {_many(runs, 'run')}" if groups else "no worker group"
    doing = f"Going away ({leaving}); {what} left" if leaving else f"Serving {what}"
    return f"{doing}; degraded: {', '.join(conditions)}" if conditions else doing


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
