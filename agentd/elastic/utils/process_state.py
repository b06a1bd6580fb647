"""The state of a process as the kernel shows it, under torch's names."""

from __future__ import annotations

from agentd.procs.procfs import read_stat

__all__ = ["is_uninterruptible_state", "read_proc_state"]

UNINTERRUPTIBLE = "D"


def read_proc_state(pid: int) -> str | None:
    """The letter of /proc/PID/stat: R runs, S sleeps, D sleeps and no signal wakes it, Z is a zombie.

    `None` if there is no such process.
    """
    stat = read_stat(pid)
    return None if stat is None else stat.state


def is_uninterruptible_state(state: str | None) -> bool:
    """Whether not even SIGKILL reaches a process in this state."""
    return state == UNINTERRUPTIBLE
