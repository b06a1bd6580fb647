"""Processes that may open or start nothing more, for as long as a test wants. For root."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

from tests.support.fleet import count_descriptors
from tests.support.waiting import wait_until

_PIDS = Path("/sys/fs/cgroup/pids")


def cannot_limit_processes() -> str:
    """Why no process can be kept from starting others here; empty: it can."""
    return "" if (_PIDS / "cgroup.procs").exists() else "needs the pids hierarchy of cgroup v1"


@contextlib.contextmanager
def no_more_files(pid: int) -> Iterator[None]:
    """The process may open nothing more. One that has ended meanwhile is no matter."""
    kind = resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, kind, (count_descriptors(pid), resource.prlimit(pid, kind)[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


@contextlib.contextmanager
def no_more_processes(*pids: int) -> Iterator[None]:
    """These processes may start none, and no thread."""
    group = _PIDS / f"agentd-test-{pids[0]}"
    group.mkdir()
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text("0")
        yield
    finally:
        (group / "pids.max").write_text("max")
        wait_until(lambda: _is_removed(group), 10)


def _is_removed(group: Path) -> bool:
    for member in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (_PIDS / "cgroup.procs").write_text(member)
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
