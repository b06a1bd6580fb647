"""What /proc tells about a process. Every reader answers `None` or nothing for a process that is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

from agentd.procs.spare import NO_ANSWER, asked
from agentd.quickdata import dataclass

PROC = "/proc"


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of /proc/<pid>/stat."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_time: int
    """Clock ticks since boot."""


def read_stat(pid: int) -> ProcessStat | None:
    """The process of this pid now, zombies included."""
    line = _read(f"{PROC}/{pid}/stat")
    if not line:
        return None
    # The name before the last ")" may hold anything, spaces and brackets too.
    fields = line[line.rindex(b")") + 2 :].split()
    return ProcessStat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_time=int(fields[19]),
    )


def processes() -> Iterator[ProcessStat]:
    """Every process that can be seen; a snapshot that ages while it is read."""
    for name in asked(lambda: os.listdir(PROC)):
        if name.isdigit():
            stat = read_stat(int(name))
            if stat is not None:
                yield stat


def is_finished(stat: ProcessStat) -> bool:
    """Whether it runs no more and only waits to be reaped."""
    if stat.state in ("X", "x"):
        return True
    # The first thread of a process may have ended while others still run: a zombie that works.
    return stat.state == "Z" and len(_tasks(stat.pid)) <= 1


def read_environ(pid: int) -> bytes:
    """The environment it was started with; empty if it is not ours to read, gone or a zombie."""
    return _read(f"{PROC}/{pid}/environ") or b""


def read_command(pid: int) -> bytes:
    """The arguments it was started with, each ended by a zero; empty as `read_environ`."""
    return _read(f"{PROC}/{pid}/cmdline") or b""


def wait_channel(pid: int) -> str:
    """Where in the kernel it sleeps, for reports about processes that do not die."""
    text = (_read(f"{PROC}/{pid}/wchan") or b"").decode(errors="replace").strip()
    return "" if text == "0" else text


def _tasks(pid: int) -> list[str]:
    try:
        return asked(lambda: os.listdir(f"{PROC}/{pid}/task"))
    except OSError:
        return []


def _read(path: str) -> bytes | None:
    """None: it is not there. Raises `OSError` where nobody can tell."""
    try:
        return asked(lambda: content(path))
    except OSError as error:
        if error.errno in NO_ANSWER:
            raise
        return None


def content(path: str) -> bytes:
    """All of a file. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
