"""The main job: a real PyTorch DDP training, two ranks on each node, hurt while it trains.

Nearly all of its time is the import of torch in each worker: test_ddp_faults has three nodes and an
undisturbed run under agentd, this one the comparison with torchrun.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.fleet import BIN, Controller, agentctl, fleet
from tests.support.training import SCRIPT, parameters, result
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

TRAINING_S = 120.0


def training(folder: Path, *more: str) -> list[str]:
    return [str(SCRIPT), "--steps", "60", "--checkpoint-every", "5", "--checkpoint-dir", str(folder), *more]


def test_a_hurt_training_ends_with_the_parameters_of_an_undisturbed_one_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # torch keeps a cache folder there
    hurt, under_torchrun = tmp_path / "hurt", tmp_path / "torchrun"
    with fleet(tmp_path, "a", "b") as nodes:
        common = ["run", "--nodes", nodes.targets(), "--nproc-per-node", "2", "--max-restarts", "2"]
        with Controller(
            *common, "--run-id", "hurt", *training(hurt, "--step-seconds", "0.1"), root=tmp_path
        ) as run:
            wait_until((hurt / "checkpoint.pt").exists, TRAINING_S)
            victim = next(worker for worker in nodes.workers("hurt") if worker["rank"] == 3)
            os.kill(int(victim["pid"]), signal.SIGKILL)
            assert run.wait(TRAINING_S) == 0, run.err + run.out

        ended = nodes.status("hurt")
        assert (ended["phase"], ended["round"], ended["restart_count"]) == ("PHASE_SUCCEEDED", 2, 1)
        assert ended["first_failure"]["signal"] == signal.SIGKILL
        assert ended["first_failure"]["rank"] == 3
        logs = agentctl("logs", "hurt", "--nodes", nodes.targets(), "--all-rounds").stdout
        resumed = [line for line in logs.splitlines() if "restart 1, goes on after step" in line]
        assert len(resumed) == 4
        assert not any("after step 0" in line for line in resumed)

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [
            BIN / "torchrun",
            "--nproc-per-node",
            "4",
            "--log-dir",
            str(tmp_path / "logs"),
            *training(under_torchrun),
        ],
        check=True,
        timeout=TRAINING_S,
        env=environment,
        capture_output=True,
    )
    assert parameters(hurt) == pytest.approx(parameters(under_torchrun), abs=1e-12), "but for rounding"
    assert result(hurt)["loss"] < 0.1
