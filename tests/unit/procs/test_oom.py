"""A worker that the OOM killer ended, told from one that somebody else killed; the kill is a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.procs import oom
from agentd.procs.oom import OomWatch
from agentd.procs.waiter import Waiter
from tests.support.waiting import wait_until

MEMORY = Path("/sys/fs/cgroup/memory")
EATER = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid())); b'x' * 200_000_000"


@pytest.fixture
def small() -> Iterator[Path]:
    """A cgroup in which 200 MB do not fit."""
    if os.geteuid() != 0 or not (MEMORY / "cgroup.procs").exists():
        pytest.skip("needs root and a version 1 memory cgroup at /sys/fs/cgroup/memory")
    folder = MEMORY / f"agentd-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text("40M")
        yield folder
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


def test_what_the_oom_killer_ended_is_told_from_what_others_killed(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Waiter() as waiter:
        watch = OomWatch(waiter)
        other = subprocess.Popen(["/bin/sleep", "60"])
        other.kill()
        other.wait()
        eater = subprocess.Popen([sys.executable, "-S", "-c", EATER, str(small)])
        assert eater.wait(30) == -signal.SIGKILL
        if oom.kernel_record(eater.pid):
            assert watch.explain(eater.pid).startswith(
                "the kernel's OOM killer ended it: Memory cgroup out of"
            )
            assert oom.kernel_record(other.pid) == ""
        # Where the log is not ours to read, as in a container, the kernel's count is.
        monkeypatch.setattr(oom, "KERNEL_LOG", "/nowhere")
        assert "most likely by the kernel's OOM killer" in watch.explain(eater.pid)
        watch.close()
        later = OomWatch(waiter)
        assert later.explain(eater.pid) == "", "a kill before it looked is none of this one's"
        later.close()


def test_a_kernel_that_counts_nothing_explains_nothing(tmp_path: Path) -> None:
    assert oom.kill_count(str(tmp_path / "absent")) == 0
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 17\nswap_ra 0\n")
    assert oom.kill_count(str(tmp_path / "vmstat")) == 17
