"""What a test left behind: processes, threads, file descriptors and files. Never signals a stranger.

A process belongs to a test when it carries the test's random token in its environment or descends from the
test's own process. The token's name must not begin with AGENTD_: the daemon strips those from its workers.
A process that replaced its environment and left its parents escapes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

TOKEN_VARIABLE = "LEAK_CHECK_TOKEN"

# name or target -> why it may outlive a test
THREADS_THAT_STAY = {
    r"\(_poll_wrapper\)": "grpc.aio polls in one thread for the whole process",
    r"^execnet": "pytest-xdist talks to its workers",
    r"^pytest_timeout": "the watchdog of the test itself",
}
FDS_THAT_STAY = {
    r"^anon_inode:\[?(eventpoll|eventfd)\]?$": "grpc's pollers are made at first use and kept for good",
    r"^/dev/(u?random|null)$": "opened once by libraries and kept",
    r"^/$": "agentd.procs keeps one back from its import on, for when there are no more",
    r"^/sys/|^/proc/(self|stat|cpuinfo|meminfo)": "psutil and grpc keep some for good",
    r"\.(so|py|pyc|pyi|zip|whl)(\.\d+)*$": "an import in progress or a loaded library",
}

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Process:
    """A process as it can be recognized: a recycled pid has another start time."""

    pid: int
    start_time: int

    def describe(self) -> str:
        with contextlib.suppress(OSError):
            command = (
                Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            state = _stat(self.pid)[0]
            return f"pid {self.pid} ({state}) {command.strip()[:200] or '[zombie or kernel]'}"
        return f"pid {self.pid} (gone meanwhile)"


@dataclass(frozen=True)
class Footprint:
    """What the test process had at one moment."""

    children: frozenset[Process]
    threads: frozenset[threading.Thread]
    fds: frozenset[tuple[int, str]]

    @classmethod
    def now(cls) -> Footprint:
        return cls(
            frozenset(descendants(os.getpid())), frozenset(threading.enumerate()), frozenset(open_fds())
        )


def forget_garbage() -> None:
    """Collects earlier objects or sets them aside: a collection then costs what this test made."""
    gc.collect()
    gc.freeze()


def left_behind(
    before: Footprint, *, token: str | None, settle_s: float, excused: Collection[str] = ()
) -> dict[str, list[str]]:
    """What is there now and was not before, by kind, after a bounded wait; leaked processes are ended.

    What is `excused` may stay: it is not waited for.
    """

    def patience(kind: str) -> float:
        return 0.0 if kind in excused else settle_s

    names = end_leaked_processes(before, token, patience("processes"))
    threads = _settled(lambda: new_threads(before), patience("threads"))
    fds = _settled(lambda: new_fds(before), patience("file descriptors"))
    found = {
        "processes": names,
        "threads": [f"{thread.name} daemon={thread.daemon}" for thread in threads],
        "file descriptors": [f"{fd} -> {target}" for fd, target in fds],
    }
    return {kind: items for kind, items in found.items() if items}


def report(found: dict[str, list[str]]) -> str:
    lines = [f"  {kind}:\n" + "\n".join(f"    {item}" for item in items) for kind, items in found.items()]
    hint = (
        "\n(a channel or server that was not closed keeps threads and sockets)"
        if "grpc" in sys.modules
        else ""
    )
    return "the test left behind:\n" + "\n".join(lines) + hint


def end_leaked_processes(before: Footprint, token: str | None, settle_s: float) -> list[str]:
    """Waits a bounded time for the test's processes to end, kills those that did not, and tells which."""
    processes = _settled(lambda: leaked_processes(before, token), settle_s)
    names = [process.describe() for process in processes]
    for process in processes:
        end(process, token)
    return names


def leaked_processes(before: Footprint, token: str | None) -> list[Process]:
    found = set(descendants(os.getpid())) - before.children
    if token is not None:
        found |= set(carrying(token))
    return sorted(
        process for process in found if process.pid != os.getpid() and not _is_in_stock(process, before)
    )


def _is_in_stock(process: Process, before: Footprint) -> bool:
    """Whether it is the host that an agentd older than the test keeps ready: that comes anew now and then."""
    from agentd.host.stock import IN_STOCK  # late: a test that starts no agentd needs nothing of it

    with contextlib.suppress(OSError):
        parent = int(_stat(process.pid)[1])
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        return IN_STOCK.encode() in command and parent in {elder.pid for elder in before.children}
    return False


def carrying(token: str) -> Iterator[Process]:
    """Processes of this user with the token in their environment."""
    needle = f"{TOKEN_VARIABLE}={token}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == os.getuid() and needle in Path(entry.path, "environ").read_bytes():
                yield identify(int(entry.name))


def descendants(pid: int) -> Iterator[Process]:
    """Children of all of a process's threads, and theirs; a zombie nobody reaped counts."""
    for child in _children(pid):
        with contextlib.suppress(OSError):
            yield identify(child)
        yield from descendants(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def identify(pid: int) -> Process:
    """Raises OSError when the process is gone."""
    return Process(pid, int(_stat(pid)[19]))


def end(process: Process, token: str | None) -> None:
    """Kills exactly this process: the pidfd is opened first, then compared with the one that was seen."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if not _still_ours(process, token):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 5.0)
    except OSError:
        return
    finally:
        os.close(pidfd)
    with contextlib.suppress(OSError):  # not our child: its parent or init reaps it
        os.waitpid(process.pid, os.WNOHANG)


def open_fds() -> Iterator[tuple[int, str]]:
    """(fd, target) of this process; the descriptor that lists them is gone before it could be named."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield int(name), os.readlink(f"/proc/self/fd/{name}")


def new_threads(before: Footprint) -> list[threading.Thread]:
    gained = set(threading.enumerate()) - before.threads
    return [t for t in gained if t.is_alive() and not _matches(THREADS_THAT_STAY, t.name)]


def new_fds(before: Footprint) -> list[tuple[int, str]]:
    """Descriptors opened since, less those that stay; the same file at another number is no leak."""
    gained = frozenset(open_fds()) - before.fds
    return sorted((fd, target) for fd, target in gained if not _matches(FDS_THAT_STAY, target))


def files_below(root: Path) -> list[str]:
    """Files and empty directories; a directory that holds something is named by what it holds."""
    found = [
        path for path in root.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    ]
    return sorted(str(path.relative_to(root)) for path in found)


def _settled(look: Callable[[], list[T]], settle_s: float) -> list[T]:
    """What remains after things had time to end by themselves; no wait when nothing is there."""
    found = look()
    if not found:
        return found
    gc.collect()  # channels and sockets in cycles close when collected
    ends, pause = time.monotonic() + settle_s, 0.002
    while (found := look()) and time.monotonic() < ends:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return found


def _matches(patterns: Iterable[str], text: str) -> bool:
    return any(re.search(pattern, text) for pattern in patterns)


def _still_ours(process: Process, token: str | None) -> bool:
    if identify(process.pid) != process:
        return False
    if process in set(descendants(os.getpid())):
        return True
    environ = Path(f"/proc/{process.pid}/environ").read_bytes()
    return token is not None and f"{TOKEN_VARIABLE}={token}".encode() in environ


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: the name before it may hold spaces and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
