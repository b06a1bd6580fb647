"""agentd is killed while its disk is behind: what it did last nobody wrote down, and no two rounds live."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from agentd.groups.reap import reap
from tests.support.fleet import agentctl, agentd, is_gone, write_script
from tests.support.waiting import wait_until

PATIENCE_S = 60.0

# Saves its state for a while when it is stopped. One of it at a time, or it says so.
WORKER = (
    "import fcntl, os, pathlib, signal, sys, time",
    "folder = pathlib.Path(sys.argv[1])",
    "lock = open(folder / 'lock', 'a')",
    "try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "except OSError: (folder / 'overlap').touch()",
    "def save(*_): time.sleep(1.5); (folder / 'saved').touch(); sys.exit(0)",
    "signal.signal(signal.SIGTERM, save)",
    "with open(folder / 'starts', 'a') as starts: starts.write(f'{os.getpid()}\\n')",
    "time.sleep(600)",
)


def starts(folder: Path) -> list[int]:
    """The pid of each worker that ever began."""
    file = folder / "starts"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def take_back(state_dir: Path) -> None:
    """Leave of the run in the journal what stands there when the disk hangs right after its admission."""
    with contextlib.closing(sqlite3.connect(state_dir / "agentd.db")) as db, db:
        db.execute(
            "UPDATE groups SET phase = 'pending', round = 0, token = '', host_pid = 0, host_start_time = 0, "
            "boot_id = '', directory = '', reason = '', state = '', sequence = 0"
        )
        db.execute("DELETE FROM hub")


def test_a_host_that_nobody_wrote_down_is_ended_before_its_group_has_another(tmp_path: Path) -> None:
    script = write_script(tmp_path / "worker.py", *WORKER)
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(agentd(tmp_path))
        done = agentctl(
            "run", "--detach", "--nodes", node.target, "--nproc-per-node", "1", "--run-id", "r",
            str(script), str(tmp_path),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        wait_until(lambda: len(starts(tmp_path)) == 1, PATIENCE_S)
        node.kill()
        take_back(node.state_dir)
        node = stack.enter_context(agentd(tmp_path, listen=node.target))
        wait_until(lambda: len(starts(tmp_path)) == 2, PATIENCE_S)
        assert not (tmp_path / "overlap").exists()
        assert is_gone(starts(tmp_path)[0])
        assert (tmp_path / "saved").exists()
        assert agentctl("stop", "r", "--wait", "--grace", "0", "--nodes", node.target).returncode == 0
        assert is_gone(starts(tmp_path)[1])


def test_reap_ends_a_host_that_nobody_wrote_down(tmp_path: Path) -> None:
    script = write_script(tmp_path / "worker.py", *WORKER)
    with agentd(tmp_path) as node:
        done = agentctl(
            "run", "--detach", "--nodes", node.target, "--nproc-per-node", "1", "--run-id", "r",
            str(script), str(tmp_path),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        wait_until(lambda: len(starts(tmp_path)) == 1, PATIENCE_S)
        node.kill()
        take_back(node.state_dir)
        (left,) = reap(str(node.state_dir), 0.0)
        assert starts(tmp_path)[0] in left.pids
        assert is_gone(starts(tmp_path)[0])
