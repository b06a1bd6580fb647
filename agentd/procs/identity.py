"""Who a process is: pid and start time together, so that a recycled pid is never taken for another."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

from agentd.procs import procfs
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of this boot. `boot_id()` tells boots apart."""

    pid: int
    start_time: int
    """Clock ticks since boot, field 22 of /proc/<pid>/stat."""


@functools.cache
def boot_id() -> str:
    """The kernel's name for this boot; start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this pid now, a zombie too; `None` if there is none."""
    stat = procfs.read_stat(pid)
    return None if stat is None else ProcessIdentity(pid, stat.start_time)


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process still runs; one that only waits to be reaped does not."""
    stat = procfs.read_stat(identity.pid)
    return stat is not None and stat.start_time == identity.start_time and not procfs.is_finished(stat)


def send_signal(identity: ProcessIdentity, signum: int) -> bool:
    """Signal that very process; tells whether it was there. Never reaches a stranger with its old pid."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    except OSError:
        return _send_without_pidfd(identity, signum)
    try:
        # Opened first, compared second: what the descriptor holds can no longer be exchanged.
        if identify(identity.pid) != identity:
            return False
        signal.pidfd_send_signal(pidfd, signum)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)


def send_group_signal(identity: ProcessIdentity, signum: int) -> bool:
    """Signal the process group that this process leads, or it alone while it leads none.

    Tells whether it was there. What is left of its group once it is reaped gets nothing.
    """
    if identify(identity.pid) != identity:
        return False
    try:
        os.killpg(identity.pid, signum)
    except ProcessLookupError:
        return send_signal(identity, signum)
    except PermissionError:
        return False
    return True


def _send_without_pidfd(identity: ProcessIdentity, signum: int) -> bool:
    """For sandboxes that forbid pidfd_open: the moment between comparing and signalling remains."""
    if identify(identity.pid) != identity:
        return False
    try:
        os.kill(identity.pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True
