"""agentd is killed or handed over while groups are ending: they end as they would have, with their grace."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)

PATIENCE_S = 60.0
GRACE_S = 5.0
# A host asks on its own clock, and the machine may be busy: also the last sign of life may be that old.
EARLY_S, LATE_S = 2.0, 6.0

# Will not end at SIGTERM: writes down when the first came, and again and again that it lives.
STUBBORN = (
    "import os, pathlib, signal, sys, time",
    "folder, rank = pathlib.Path(sys.argv[1]), os.environ['RANK']",
    "up, asked = folder / f'up-{rank}', folder / f'asked-{rank}'",
    "signal.signal(signal.SIGTERM, lambda *_: asked.touch() if not asked.exists() else None)",
    "up.write_text(str(os.getpid()))",
    "while True:",
    "    if (folder / f'fail-{rank}').exists(): sys.exit(7)",
    "    os.utime(up)",
    "    time.sleep(0.02)",
)


def asked(folder: Path, *ranks: int) -> bool:
    """Whether each of these workers was told to end."""
    return all((folder / f"asked-{rank}").exists() for rank in ranks)


def pids(folder: Path, *ranks: int) -> list[int]:
    """Of those of these workers that are up."""
    files = [folder / f"up-{rank}" for rank in ranks]
    return [int(text) for file in files if file.exists() and (text := file.read_text())]


def begin(nodes: Fleet, tmp_path: Path, run_id: str) -> Path:
    folder = tmp_path / run_id
    folder.mkdir()
    script = write_script(tmp_path / "stubborn.py", *STUBBORN)
    done = agentctl(
        "run", "--detach", "--nodes", nodes.targets(), "--nproc-per-node", "1", "--run-id", run_id,
        "--stop-grace", f"{GRACE_S:g}", str(script), str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(pids(folder, 0, 1)) == 2, PATIENCE_S)
    return folder


def had_its_grace(folder: Path, *ranks: int) -> None:
    """Neither shortened nor begun again by the next agentd."""
    for rank in ranks:
        last, told = ((folder / f"{name}-{rank}").stat().st_mtime for name in ("up", "asked"))
        assert GRACE_S - EARLY_S < last - told < GRACE_S + LATE_S


def test_groups_that_are_ending_end_with_their_whole_grace_under_the_next_agentd(tmp_path: Path) -> None:
    """Of two runs on two nodes one is stopped, one fails; then the agentd of one node is killed, the other's
    handed over."""
    with fleet(tmp_path, "a", "b") as nodes:
        stopped, failed = begin(nodes, tmp_path, "stopped"), begin(nodes, tmp_path, "failed")
        (failed / "fail-1").touch()
        done = agentctl("stop", "stopped", "--reason", "enough", "--nodes", nodes.targets())
        assert done.returncode == 0, done.stderr
        wait_until(lambda: asked(stopped, 0, 1) and asked(failed, 0), PATIENCE_S)
        nodes["b"].process.send_signal(signal.SIGUSR2)
        nodes["a"].kill()
        assert nodes["b"].process.wait(PATIENCE_S) == 0
        ending = [*pids(stopped, 0, 1), *pids(failed, 0)]
        assert not any(is_gone(pid) for pid in ending)
        for name in ("a", "b"):
            nodes.again(name)
        for run_id, phase in (("stopped", "PHASE_STOPPED"), ("failed", "PHASE_FAILED")):
            for name in ("a", "b"):
                wait_until(lambda: nodes.phase(run_id, name) == phase, PATIENCE_S)  # noqa: B023
        assert nodes.status("stopped")["reason"] == "enough"
        first = nodes.status("failed")["first_failure"]
        assert (first["node_id"], first["rank"], first["exit_code"]) == ("b", 1, 7)
        assert all(is_gone(pid) for pid in ending)
        had_its_grace(stopped, 0, 1)
        had_its_grace(failed, 0)
