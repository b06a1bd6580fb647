"""What agentd has announced is in its journal, whatever kills it; a full disk harms nothing for good."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.api.errors import AgentError, JournalUnavailable, NodeDegraded
from agentd.api.types import Command, RoleSpec, RunRequest, RunSpec
from agentd.groups.journal import BEHIND, open_for_reading
from agentd_client import AgentClient
from tests.support.fleet import BIN, Node, agentd
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


def start(client: AgentClient, run_id: str) -> None:
    """A run of other nodes, of which this one is only the hub: nothing is started, all is journalled."""
    role = RoleSpec(command=Command(entrypoint="/x.py"))
    spec = RunSpec(run_id=run_id, roles=(role,), nodes=("elsewhere",))
    client.run(RunRequest(request_id=run_id, spec=spec))


def is_refused(client: AgentClient) -> bool:
    """Whether one more run is refused for want of the journal, or of its disk."""
    try:
        start(client, f"r{time.monotonic_ns()}")
    except (JournalUnavailable, NodeDegraded):
        return True
    return False


def test_reap_says_that_a_journal_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "agentd.db").write_bytes(b"garbage " * 1000)
    done = subprocess.run(
        [str(BIN / "agentd"), "reap", "--state-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "not a database" in done.stderr
    assert "Traceback" not in done.stderr


class Callers:
    """Start one run after the other, from several threads, until the agentd is gone."""

    def __init__(self, node: Node, count: int) -> None:
        self.answered: list[str] = []
        self._threads = [
            threading.Thread(target=self._call, args=(node.target, number)) for number in range(count)
        ]

    def _call(self, target: str, number: int) -> None:
        with AgentClient(target, timeout_s=5) as client, contextlib.suppress(AgentError):
            for n in range(100_000):
                start(client, f"r{number}-{n}")
                self.answered.append(f"r{number}-{n}")

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(30)


@pytest.mark.parametrize("answers", [1, 40, 150])
def test_every_run_that_was_answered_is_known_after_kill_9_in_the_middle_of_writes(
    tmp_path: Path, answers: int
) -> None:
    with agentd(tmp_path) as node:
        with Callers(node, 3) as callers:
            wait_until(lambda: len(callers.answered) >= answers, 60)
            node.kill()
        journal = node.state_dir / "agentd.db"
        known = {row.run_id for row in open_for_reading(journal).runs}
        with contextlib.closing(sqlite3.connect(journal)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert set(callers.answered) <= known
    with agentd(tmp_path) as node, AgentClient(node.target) as client:
        assert set(callers.answered) <= {run.run_id for run in client.list_runs(include_ended=True)}
        assert client.get_node().conditions == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MiB."""
    folder = tmp_path / "node-a" / "state"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounts a file system")
def test_a_full_disk_refuses_new_runs_and_recovers_by_itself(tmp_path: Path, small_disk: Path) -> None:
    with agentd(tmp_path) as node, AgentClient(node.target) as client:
        start(client, "before")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        wait_until(lambda: is_refused(client))
        wait_until(lambda: BEHIND in client.get_node().conditions)
        assert "full" in client.get_node().condition_details[BEHIND]
        assert client.status("before").run_id == "before"
        filler.unlink()
        wait_until(lambda: client.get_node().conditions == ())
        start(client, "after")
        known = {row.run_id for row in open_for_reading(small_disk / "agentd.db").runs}
        assert {"before", "after"} <= known
        # So that nothing holds on to the file system.
        node.stop()


def test_a_disk_that_takes_no_write_for_a_while_is_survived(tmp_path: Path) -> None:
    with agentd(tmp_path) as node, AgentClient(node.target) as client:
        start(client, "before")
        with no_file_grows(node.pid):
            with pytest.raises(JournalUnavailable):
                start(client, "meanwhile")
            assert BEHIND in client.get_node().conditions
            assert client.status("before").run_id == "before"
        wait_until(lambda: client.get_node().conditions == ())
        start(client, "after")
        known = {row.run_id for row in open_for_reading(node.state_dir / "agentd.db").runs}
    assert {"before", "after"} <= known
    assert "meanwhile" not in known


@contextlib.contextmanager
def no_file_grows(pid: int) -> Iterator[None]:
    """Every write of the process that would make a file longer fails."""
    kind = resource.RLIMIT_FSIZE
    before = resource.prlimit(pid, kind, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)
