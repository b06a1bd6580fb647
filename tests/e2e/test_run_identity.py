"""Run retried, repeated and raced: one incarnation while it lives, a new one after its end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Controller, Fleet, agentctl, fleet, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

UNTIL_TOLD = (
    "import os, pathlib, sys, time",
    "(pathlib.Path(sys.argv[1]).parent / f'pid-{os.getpid()}').touch()",
    "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
)


def detached(nodes: Fleet, script: Path, end: Path, *flags: str) -> dict[str, Any]:
    done = agentctl(
        "run",
        "--detach",
        "--nodes",
        nodes.targets(),
        "--run-id",
        "r",
        "-o",
        "json",
        *flags,
        str(script),
        str(end),
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_repeated_run_is_the_same_incarnation_and_starts_nothing(tmp_path: Path) -> None:
    script, end = write_script(tmp_path / "s.py", *UNTIL_TOLD), tmp_path / "end"
    with fleet(tmp_path, "a", "b") as nodes:
        first = detached(nodes, script, end)
        wait_until(lambda: len(nodes.workers("r")) == 2, 60)
        again = detached(nodes, script, end)
        assert again["incarnation"] == first["incarnation"]
        assert len(nodes.workers("r")) == 2
        end.touch()
        assert agentctl("wait", "r", "--nodes", nodes.targets()).returncode == 0
    assert len(list(tmp_path.glob("pid-*"))) == 2


def test_a_live_run_with_another_spec_is_refused_and_told_what_differs(tmp_path: Path) -> None:
    script, end = write_script(tmp_path / "s.py", *UNTIL_TOLD), tmp_path / "end"
    with fleet(tmp_path, "a") as nodes:
        detached(nodes, script, end)
        wait_until(lambda: nodes.workers("r"), 60)
        other = agentctl(
            "run", "--nodes", nodes.targets(), "--run-id", "r", "--max-restarts", "9", "--env", "A=b",
            str(script), str(end),
        )  # fmt: skip
        assert other.returncode != 0
        assert "max_restarts" in other.stderr
        assert "env" in other.stderr
        assert len(nodes.workers("r")) == 1
        end.touch()
        assert agentctl("wait", "r", "--nodes", nodes.targets()).returncode == 0


def test_after_the_end_the_same_run_id_starts_a_new_incarnation(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "pass")
    with fleet(tmp_path, "a", "b") as nodes:
        seen = []
        for _ in range(3):
            done = agentctl("run", "--nodes", nodes.targets(), "--run-id", "r", str(script))
            assert done.returncode == 0, done.stderr
            seen.append(int(nodes.status("r")["incarnation"]))
        # Another node may be the hub next time; the number still grows.
        turned = agentctl("run", "--nodes", nodes.targets("b", "a"), "--run-id", "r", str(script))
        assert turned.returncode == 0, turned.stderr
        seen.append(int(nodes.status("r", "b", "a")["incarnation"]))
    assert seen == sorted(set(seen))


def test_two_clients_that_race_get_one_run(tmp_path: Path) -> None:
    script, end = write_script(tmp_path / "s.py", *UNTIL_TOLD), tmp_path / "end"
    with fleet(tmp_path, "a", "b", "c") as nodes:
        command = ["run", "--nodes", nodes.targets(), "--run-id", "r", str(script), str(end)]
        with Controller(*command, root=tmp_path) as one, Controller(*command, root=tmp_path) as two:
            wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 3, 60)
            end.touch()
            codes = one.wait(), two.wait()
        assert codes == (0, 0), one.err + two.err
    assert len(list(tmp_path.glob("pid-*"))) == 3


def test_a_worker_that_fails_gives_its_code_and_its_story(tmp_path: Path) -> None:
    script = write_script(
        tmp_path / "s.py", "import os, sys, time",
        "if os.environ['RANK'] == '1':",
        "    print('the cause stands here', file=sys.stderr)",
        "    sys.exit(42)",
        "time.sleep(1000)",
    )  # fmt: skip
    with fleet(tmp_path, "a", "b") as nodes:
        done = agentctl("run", "--nodes", nodes.targets(), "--run-id", "r", "--stop-grace", "5", str(script))
        status = nodes.status("r")
    assert done.returncode == 42
    assert "the cause stands here" in done.stderr
    assert "rank 1" in done.stderr
    failure = status["first_failure"]
    assert (failure["node_id"], failure["rank"], failure["exit_code"]) == ("b", 1, 42)
    assert "the cause stands here" in failure["stderr_tail"]


def test_a_worker_that_a_signal_ended_gives_128_and_the_signal(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "import os, signal", "os.kill(os.getpid(), signal.SIGSEGV)")
    with fleet(tmp_path, "a") as nodes:
        done = agentctl("run", "--nodes", nodes.targets(), "--run-id", "r", str(script))
    assert done.returncode == 128 + signal.SIGSEGV
    assert "SIGSEGV" in done.stderr
