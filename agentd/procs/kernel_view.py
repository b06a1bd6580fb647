"""What the kernel tells of a process' threads and signals.

Only files that can be read while a process hangs in the kernel: `cmdline` and `environ` of /proc wait for its
memory map, which a process stuck on storage may hold. Nothing raises; a process that is gone has no threads.
"""

from __future__ import annotations

import os
from pathlib import Path

from agentd.procs.procfs import PROC

MOST_THREADS = 256
MOST_FRAMES = 64


def thread_ids(pid: int) -> list[int]:
    """Its threads; none if it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"{PROC}/{pid}/task"))
    except OSError:
        return []


def catches(pid: int, signum: int) -> bool:
    """Whether it has a handler of its own for the signal."""
    return _has(_fields(f"{PROC}/{pid}/status"), "SigCgt", signum)


def is_pending(pid: int, signum: int) -> bool:
    """Whether the signal was sent to the process and none of its threads has taken it yet."""
    return _has(_fields(f"{PROC}/{pid}/status"), "ShdPnd", signum)


def threads_blocking(pid: int, signum: int) -> frozenset[int]:
    """The threads that block the signal, as a thread does while it runs the handler."""
    return frozenset(
        tid for tid in thread_ids(pid) if _has(_fields(f"{PROC}/{pid}/task/{tid}/status"), "SigBlk", signum)
    )


def describe_threads(pid: int) -> str:
    """For each thread its name, state, where in the kernel it waits, and its kernel stack if readable."""
    tids = thread_ids(pid)
    parts = [_describe(f"{PROC}/{pid}/task/{tid}", tid) for tid in tids[:MOST_THREADS]]
    if len(tids) > MOST_THREADS:
        parts.append(f"and {len(tids) - MOST_THREADS} more threads\n")
    return "".join(parts)


def _describe(folder: str, tid: int) -> str:
    fields = _fields(f"{folder}/status")
    channel = _text(f"{folder}/wchan")
    where = f", waits in {channel}" if channel not in ("", "0") else ""
    lines = [f"thread {tid} ({fields.get('Name', '?')}): state {fields.get('State', '?')}{where}"]
    call = _text(f"{folder}/syscall")
    if call and call != "running":
        lines.append(f"  system call: {call}")
    frames = _text(f"{folder}/stack").splitlines()
    lines += [f"  {frame}" for frame in frames[:MOST_FRAMES]]
    return "\n".join(lines) + "\n"


def _has(fields: dict[str, str], mask: str, signum: int) -> bool:
    return bool(int(fields.get(mask, "0"), 16) >> (signum - 1) & 1)


def _fields(path: str) -> dict[str, str]:
    found = {}
    # Not splitlines: a thread's own name may hold what that takes for the end of a line.
    for line in _text(path).split("\n"):
        name, _, value = line.partition(":")
        found[name] = value.strip()
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
