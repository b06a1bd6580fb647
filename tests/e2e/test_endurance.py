"""Many runs leave nothing behind: no process, descriptor, socket, thread; and memory stays."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from agentd_client import Command, Fleet, Phase, RoleSpec, RunSpec
from tests.support.fleet import (
    Node,
    agentctl,
    agentd,
    count_descriptors,
    count_threads,
    is_at_rest,
    write_script,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(240)

WARM_UP = 20
AT_ONCE = 20
MOST_THREADS = 48
"""All pools of the daemon full; a thread for each run would be far beyond."""


def one_run(node: Node, script: Path, run_id: str) -> None:
    done = agentctl("run", "--nodes", node.target, "--run-id", run_id, str(script), timeout=120)
    assert done.returncode == 0, done.stderr


def one_program(fleet: Fleet, script: Path, run_id: str) -> None:
    """The same by the client library, for the many: most of a run is the start of an agentctl."""
    command = Command(entrypoint=str(script), python=sys.executable)
    report = fleet.run(RunSpec(run_id=run_id, roles=(RoleSpec(command=command),))).wait(120)
    assert report.status.phase is Phase.SUCCEEDED, report.status.reason


def settled(node: Node, fds: int) -> bool:
    few = count_descriptors(node.pid) <= fds and count_threads(node.pid) <= MOST_THREADS
    return few and is_at_rest(node.pid)


@pytest.mark.parametrize(
    "in_a_row",
    [
        pytest.param(100, id="a hundred"),
        pytest.param(2_000, id="two thousand", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_runs_in_a_row_and_twenty_at_once_leave_nothing(tmp_path: Path, in_a_row: int) -> None:
    script = write_script(tmp_path / "s.py", "print('done')")
    with agentd(tmp_path, "a") as node:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda i: one_run(node, script, f"warm-{i}"), range(WARM_UP)))
        wait_until(lambda: is_at_rest(node.pid), 60)
        fds, memory = count_descriptors(node.pid), psutil.Process(node.pid).memory_info().rss
        with Fleet([node.target]) as client, ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: one_program(client, script, f"row-{i}"), range(in_a_row)))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda i: one_run(node, script, f"at-once-{i}"), range(AT_ONCE)))
        wait_until(lambda: settled(node, fds), 60, what=f"at most {fds} descriptors, no run's process")
        grown = psutil.Process(node.pid).memory_info().rss - memory
        assert grown < 12 * 1024 * 1024, f"{grown / 2**20:.1f} MiB more after {in_a_row + AT_ONCE} runs"
        assert not node.process.poll()
    assert "Traceback" not in node.log.read_text()
