"""A worker that hangs in a step: ended, explained, restarted with the others; its stacks are kept."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.fleet import agentctl, fleet, write_script

# The first time round rank 0 hangs in a step that has a limit; then all is well.
HANGS = (
    "import os, time",
    "from agentd.elastic import timer",
    "def slow_step(): time.sleep(1000)",
    "timer.configure(timer.FileTimerClient(os.environ['TORCHELASTIC_TIMER_FILE']))",
    "limit = 0.5 if os.environ['RANK'] == '0' else 100",
    "with timer.expires(after=limit, scope='step 7'):",
    "    if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': slow_step()",
)


def test_a_hanging_rank_restarts_all_nodes_and_its_stacks_are_in_its_log_folder(tmp_path: Path) -> None:
    script = write_script(tmp_path / "hangs.py", *HANGS)
    with fleet(tmp_path, "a", "b") as nodes:
        done = agentctl(
            "run", "--nodes", nodes.targets(), "--run-id", "h", "--max-restarts", "1",
            "--env", "TORCHELASTIC_ENABLE_FILE_TIMER=1", "--env", f"PYTHONPATH={os.getcwd()}", str(script),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        status = nodes.status("h")
    failure = status["first_failure"]
    assert (failure["rank"], failure["signal"], status["restart_count"]) == (0, 9, 1)
    assert "watchdog" in failure["message"]
    assert "step 7" in failure["message"]
    (stacks,) = tmp_path.rglob("stacks.txt")
    assert "slow_step" in stacks.read_text()
    assert str(stacks) in failure["message"]
