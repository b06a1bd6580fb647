"""A real DDP training on three machines goes through every fault, and its parameters are right."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, fleet, is_gone, write_script
from tests.support.netns import DEVICE, Network, network
from tests.support.training import SCRIPT, parameters
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.root, pytest.mark.netns, pytest.mark.timeout(300)]

RUN = "hurt"
LEASE_S = 4.0
PATIENCE_S = 90.0
# The training as it is, but its pauses end when the test wants it to end.
HURRY = (
    "import pathlib, runpy, sys, time",
    "pause, hurry = time.sleep, pathlib.Path(sys.argv[1])",
    "time.sleep = lambda seconds: None if hurry.exists() else pause(seconds)",
    "del sys.argv[:2]",
    "runpy.run_path(sys.argv[0], run_name='__main__')",
)


class Training:
    """The training of one run, looked at from outside."""

    def __init__(self, nodes: Fleet, folder: Path) -> None:
        self._nodes = nodes
        self.folder = folder

    def status(self, *names: str) -> dict[str, Any]:
        return self._nodes.status(RUN, *names)

    def wait_for_round(self, number: int, world_size: int, *names: str) -> None:
        """Until all workers of the round run, and the training has gone on in it."""
        wait_until(lambda: self._runs(number, world_size, *names), PATIENCE_S, what=f"round {number}")
        self.wait_for_progress()

    def wait_for_progress(self) -> None:
        """Until two checkpoints are new: the first may have been under way before."""
        self._wait_for_checkpoint()
        self._wait_for_checkpoint()

    def pids(self, *names: str) -> dict[str, int]:
        """The worker of each node."""
        return {
            node["node_id"]: worker["pid"]
            for node in self.status(*names)["nodes"]
            for group in node["groups"]
            for worker in group.get("workers", [])
            if not names or node["node_id"] in names
        }

    def _wait_for_checkpoint(self) -> None:
        before = self._saved()
        wait_until(lambda: self._saved() != before, PATIENCE_S, what="a new checkpoint")

    def _runs(self, number: int, world_size: int, *names: str) -> bool:
        status = self.status(*names)
        groups = [group for node in status["nodes"] for group in node["groups"]]
        running = [
            group for group in groups if group["phase"] == "PHASE_RUNNING" and group["round"] == number
        ]
        return status.get("round") == number and sum(len(group["workers"]) for group in running) == world_size

    def _saved(self) -> int:
        try:
            return (self.folder / "checkpoint.pt").stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def test_a_training_over_three_nodes_outlives_every_fault_with_the_right_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # torch keeps a cache folder there
    hurt, calm, hurry = tmp_path / "hurt", tmp_path / "calm", tmp_path / "hurry"
    gentle = str(write_script(tmp_path / "gentle.py", *HURRY))
    with network("a", "b", "c") as net, fleet(tmp_path, "a", "b", "c", net=net) as nodes:
        _start(nodes, RUN, [gentle, str(hurry), *_training(hurt), "--step-seconds", "0.3"], members="2:3")
        run = Training(nodes, hurt)
        run.wait_for_round(1, 3)

        _kill_a_worker(run)
        _unharmed_by(lambda: _kill_an_agentd(nodes, "b"), run)
        _kill_a_host(run)
        _unharmed_by(lambda: _kill_an_agentd(nodes, "a"), run)  # the hub's
        _partition_a_node(run, net)

        hurry.touch()
        wait_until(lambda: run.status()["phase"] == "PHASE_SUCCEEDED", PATIENCE_S, what="the end")
        ended = run.status()
        assert (ended["restart_count"], ended["membership_changes"]) == (2, 2)
        assert "host" in ended["first_failure"]["message"], "of the last round that failed"
        _start(nodes, "calm", _training(calm), members="1", names=("a",))
        wait_until(lambda: nodes.phase("calm", "a") == "PHASE_SUCCEEDED", PATIENCE_S)
    assert parameters(hurt) == pytest.approx(parameters(calm), abs=1e-9)


def _kill_a_worker(run: Training) -> None:
    os.kill(run.pids()["b"], signal.SIGKILL)
    run.wait_for_round(2, 3)


def _kill_an_agentd(nodes: Fleet, name: str) -> None:
    nodes[name].kill()
    nodes.again(name)


def _unharmed_by(fault: Callable[[], None], run: Training) -> None:
    before = run.pids()
    fault()
    run.wait_for_round(2 if run.status()["restart_count"] == 1 else 3, 3)
    assert run.pids() == before, "nothing restarts because an agentd did"


def _kill_a_host(run: Training) -> None:
    status = run.status()
    (group,) = next(node["groups"] for node in status["nodes"] if node["node_id"] == "c")
    os.kill(group["host_pid"], signal.SIGKILL)
    wait_until(lambda: is_gone(group["workers"][0]["pid"]), PATIENCE_S, what="workers die with their host")
    run.wait_for_round(3, 3)


def _partition_a_node(run: Training, net: Network) -> None:
    cut_off = run.pids()["c"]
    net.partition("c")
    run.wait_for_round(4, 2, "a", "b")
    net.heal("c")
    wait_until(lambda: is_gone(cut_off), PATIENCE_S, what="the old round ends where it went on")
    run.wait_for_round(5, 3)


def _start(
    nodes: Fleet, run_id: str, program: list[str], *, members: str, names: tuple[str, ...] = ()
) -> None:
    done = nodes.agentctl(
        *("run", "--detach", "--nodes", nodes.targets(*names), "--run-id", run_id, "--nnodes", members),
        *("--max-restarts", "2", "--rdzv-conf", f"heartbeat=0.3,lease={LEASE_S}"),
        *("--env", f"GLOO_SOCKET_IFNAME={DEVICE}", *program),
    )
    assert done.returncode == 0, done.stderr


def _training(folder: Path) -> list[str]:
    return [str(SCRIPT), "--steps", "150", "--checkpoint-every", "2", "--checkpoint-dir", str(folder)]
