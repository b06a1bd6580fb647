"""A worker that SIGKILL does not end: waits stay bounded, the others go on, and the node recovers by itself.

It sits in a frozen version 1 cgroup, in which the kernel keeps even SIGKILL waiting until it is thawed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.api.types import NodeInfo, NodeStatus, Phase, RunStatus
from agentd_client import AgentClient
from tests.support.fleet import Fleet, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

FREEZER = Path("/sys/fs/cgroup/freezer")
PATIENCE_S = 60.0
GRACE_S = 1.0
VERDICT_S = 5.0
"""How long after SIGKILL a process that is still there counts as unkillable."""
NOISE_S = 20.0
"""What a busy machine may add."""

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0 or not (FREEZER / "cgroup.procs").exists(),
        reason="needs root and a version 1 freezer at /sys/fs/cgroup/freezer to make a process unkillable",
    ),
]

WORKER = (
    "import os, pathlib, sys, time",
    "env = os.environ",
    "name = f\"{env['TORCHELASTIC_RUN_ID']}-{env['AGENTD_NODE_ID']}-{env['AGENTD_ROUND']}\"",
    "(pathlib.Path(sys.argv[1]) / name).write_text(str(os.getpid()))",
    "time.sleep(600)",
)


class Ice:
    """A frozen cgroup for processes of a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pids: list[int] = []

    def freeze(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))
        (self._folder / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (self._folder / "freezer.state").read_text().strip() == "FROZEN", PATIENCE_S)
        self.pids.append(pid)

    def thaw(self) -> None:
        (self._folder / "freezer.state").write_text("THAWED")


@pytest.fixture
def ice(tmp_path: Path) -> Iterator[Ice]:
    folder = FREEZER / f"agentd-test-{os.getpid()}"
    folder.mkdir()
    made = Ice(folder)
    try:
        yield made
    finally:
        made.thaw()
        wait_until(lambda: all(is_gone(pid) for pid in made.pids), PATIENCE_S)

        def removed() -> bool:
            with contextlib.suppress(OSError):
                folder.rmdir()
            return not folder.exists()

        wait_until(removed, PATIENCE_S)


def begin(nodes: Fleet, folder: Path, run_id: str, *flags: str, names: tuple[str, ...] = ()) -> None:
    """A detached run of one worker a node, up in its first round."""
    folder.mkdir(exist_ok=True)
    script = write_script(folder.parent / "worker.py", *WORKER)
    names = names or tuple(nodes.nodes)
    done = agentctl(
        "run", "--detach", "--nodes", nodes.targets(*names), "--run-id", run_id, "--stop-grace", str(GRACE_S),
        *flags, str(script), str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in names:
        worker(folder, run_id, name)


def worker(folder: Path, run_id: str, name: str, round_: int = 1) -> int:
    """The pid of a node's worker in that round."""
    file = folder / f"{run_id}-{name}-{round_}"
    wait_until(lambda: file.exists() and file.read_text(), PATIENCE_S)
    return int(file.read_text())


def node(nodes: Fleet, name: str) -> NodeInfo:
    """What GetNode says."""
    with AgentClient(nodes[name].target) as client:
        return client.get_node()


def is_ready(nodes: Fleet, name: str) -> bool:
    """What a load balancer sees."""
    with AgentClient(nodes[name].target) as client:
        return client.health("agentd.v1.AgentService") == "SERVING"


def status(nodes: Fleet, run_id: str, name: str) -> RunStatus:
    """The run as a node knows it."""
    with AgentClient(nodes[name].target) as client:
        return client.status(run_id)


def part(nodes: Fleet, run_id: str, name: str) -> NodeStatus:
    """A node's part of a run, as the node itself knows it."""
    (found,) = [each for each in status(nodes, run_id, name).nodes if each.node_id == name]
    return found


def test_an_unkillable_worker_costs_its_own_place_and_nothing_else(tmp_path: Path, ice: Ice) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder, "r", "--nnodes", "1:2", "--max-restarts", "3")
        begin(nodes, folder, "beside", names=("b",))
        frozen = worker(folder, "r", "b")
        ice.freeze(frozen)

        # Another worker fails: the round is stopped everywhere, and cannot be on b.
        os.kill(worker(folder, "r", "a"), 9)
        began = time.monotonic()
        second = worker(folder, "r", "a", 2)
        assert time.monotonic() - began < GRACE_S + VERDICT_S + NOISE_S
        wait_until(lambda: part(nodes, "r", "b").phase is Phase.LOST, PATIENCE_S)
        lost = part(nodes, "r", "b")
        assert f"SIGKILL did not end {frozen} (" in str(lost), lost
        assert "where is unknown" not in str(lost), "the kernel's wait channel is told"
        assert not (folder / "r-b-2").exists(), "nothing starts where something cannot be ended"
        assert status(nodes, "r", "a").phase is Phase.RUNNING, "the others have formed a round without it"

        shown = node(nodes, "b")
        assert str(frozen) in shown.condition_details["UNKILLABLE"], shown
        wait_until(lambda: not is_ready(nodes, "b"), PATIENCE_S)
        assert is_ready(nodes, "a")

        # The next agentd of the node knows it, too, and is there at once.
        nodes["b"].kill()
        began = time.monotonic()
        nodes.again("b")
        assert time.monotonic() - began < GRACE_S + VERDICT_S + NOISE_S
        assert "UNKILLABLE" in node(nodes, "b").conditions
        assert not is_ready(nodes, "b")
        assert not is_gone(frozen)

        # All else goes on there.
        wait_until(lambda: status(nodes, "beside", "b").phase is Phase.RUNNING, PATIENCE_S)
        assert agentctl("stop", "beside", "--wait", "--nodes", nodes.targets("b")).returncode == 0
        assert status(nodes, "beside", "b").phase is Phase.STOPPED

        ice.thaw()
        wait_until(lambda: is_gone(frozen), PATIENCE_S)
        wait_until(lambda: is_ready(nodes, "b"), PATIENCE_S)
        assert not node(nodes, "b").conditions
        # Its part of the run comes back by itself.
        again = worker(folder, "r", "b", 3)
        assert len(nodes.workers("r")) == 2
        begin(nodes, folder, "after", names=("b",))
        assert agentctl("stop", "r", "--wait", "--nodes", nodes.targets()).returncode == 0
        assert is_gone(second)
        assert is_gone(again)


def test_a_stop_of_an_unkillable_worker_is_bounded_also_when_agentd_dies_meanwhile(
    tmp_path: Path, ice: Ice
) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        begin(nodes, folder, "r")
        frozen = worker(folder, "r", "a")
        ice.freeze(frozen)
        began = time.monotonic()
        assert agentctl("stop", "r", "--nodes", nodes.targets()).returncode == 0
        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: status(nodes, "r", "a").phase in (Phase.LOST, Phase.STOPPED), PATIENCE_S)
        assert time.monotonic() - began < GRACE_S + VERDICT_S + NOISE_S
        assert "UNKILLABLE" in part(nodes, "r", "a").reason
        assert not is_gone(frozen)
        wait_until(lambda: "UNKILLABLE" in node(nodes, "a").conditions, PATIENCE_S)
        ice.thaw()
        wait_until(lambda: is_gone(frozen), PATIENCE_S)
        wait_until(lambda: is_ready(nodes, "a"), PATIENCE_S)


def test_a_lost_group_on_the_hubs_node_comes_back_once_the_kernel_lets_go(tmp_path: Path, ice: Ice) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        begin(nodes, folder, "r", "--max-restarts", "3")
        frozen = worker(folder, "r", "a")
        ice.freeze(frozen)
        os.kill(part(nodes, "r", "a").groups[0].host_pid, 9)
        wait_until(lambda: part(nodes, "r", "a").phase is Phase.LOST, PATIENCE_S)
        nodes["a"].kill()
        nodes.again("a")
        assert "UNKILLABLE" in node(nodes, "a").conditions
        assert part(nodes, "r", "a").phase is Phase.LOST
        ice.thaw()
        again = worker(folder, "r", "a", 2)
        assert is_gone(frozen)
        assert agentctl("stop", "r", "--wait", "--nodes", nodes.targets()).returncode == 0
        assert is_gone(again)
