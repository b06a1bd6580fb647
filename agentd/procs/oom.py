"""Whether it was the kernel's OOM killer that ended a process: a SIGKILL looks the same whoever sends it.

The kernel's log names the victim, to those who may read it and see the machine's own process ids. To all
others the kernel only counts: a kill within the seconds in which the process died is most likely this one's.
"""

from __future__ import annotations

import contextlib
import os
import time

from agentd.procs.waiter import Waiter

LOOK_S = 5.0
"""Between two looks at the count."""

KERNEL_LOG = "/dev/kmsg"
COUNTS = "/proc/vmstat"

_MACHINES_OWN_PIDS = 0xEFFFFFFC
"""The inode of the first pid namespace, the one whose numbers the kernel's log has."""
_RECENT_S = 60.0
_MOST_RECORDS = 50_000
_SHOWN = 200


class OomWatch:
    """Remembers how many processes the OOM killer has ended. Lives in its owner's `Waiter`."""

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self._now = self._before = kill_count()
        self._next_look = waiter.now() + LOOK_S
        waiter.add_pump(self._look)

    def explain(self, pid: int) -> str:
        """Why a process got SIGKILL just now, if the OOM killer has a part in it; else empty."""
        # Against the last look but one: the last may have come between the kill and this.
        killed = kill_count() - self._before
        if killed <= 0:
            return ""  # at once: the log is long, and others wait to hear of the failure
        if record := kernel_record(pid):
            return f"the kernel's OOM killer ended it: {record}"
        return (
            f"most likely by the kernel's OOM killer, which ended {killed} on this machine in the last "
            f"{2 * LOOK_S:g} s: see dmesg"
        )

    def close(self) -> None:
        """Look no more."""
        self._waiter.remove_pump(self._look)

    def _look(self, now: float) -> float:
        if now >= self._next_look:
            self._before, self._now = self._now, kill_count()
            self._next_look = now + LOOK_S
        return self._next_look


def kill_count(path: str = COUNTS) -> int:
    """How many processes the OOM killer has ended since the machine began; 0 where that is not counted."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    return 0


def kernel_record(pid: int) -> str:
    """What the kernel's log says lately of the OOM killer and this process; empty: nothing we may read."""
    try:
        if os.stat("/proc/self/ns/pid").st_ino != _MACHINES_OWN_PIDS:
            return ""
        log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return _find_record(log, pid)
    finally:
        os.close(log)


def _find_record(log: int, pid: int) -> str:
    wanted, since_us = f"Killed process {pid} (", (time.monotonic() - _RECENT_S) * 1e6
    for _ in range(_MOST_RECORDS):
        try:
            # One record a read: "priority,number,microseconds since boot,flags;text".
            head, _, text = os.read(log, 8192).decode(errors="replace").partition(";")
        except BrokenPipeError:
            continue  # older records were overwritten meanwhile
        except OSError:
            return ""
        if wanted in text and "ut of memory" in text and _microseconds(head) >= since_us:
            return text.splitlines()[0][:_SHOWN]
    return ""


def _microseconds(head: str) -> int:
    fields = head.split(",")
    return int(fields[2]) if len(fields) > 2 and fields[2].isdigit() else 0
