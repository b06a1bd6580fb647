"""Whoever follows the history of a run hears of nodes that join it later, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fleet import Controller, agentctl, fleet, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60.0


def kinds(out: str, node_id: str) -> list[str]:
    """What was told of a node so far, a line that is being written aside."""
    found = [json.loads(line) for line in out.splitlines(keepends=True) if line.endswith("\n")]
    return [event["kind"] for event in found if event["node_id"] == node_id]


def test_a_followed_history_tells_of_a_node_that_left_and_came_back(tmp_path: Path) -> None:
    script, end = write_script(
        tmp_path / "s.py", "import pathlib, sys, time",
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
    ), tmp_path / "end"  # fmt: skip
    with fleet(tmp_path, "a", "b") as nodes:
        run = ("run", "-d", "--nodes", nodes.targets(), "--nnodes", "1:2", "--run-id", "r")
        assert agentctl(*run, str(script), str(end)).returncode == 0
        with Controller(
            "events", "r", "--nodes", nodes.targets(), "-f", "-o", "jsonl", root=tmp_path
        ) as following:
            wait_until(lambda: "workers_started" in kinds(following.out, "b"), PATIENCE_S)
            left = agentctl("leave", "r", "--nodes", nodes["b"].target)
            assert left.returncode == 0, left.stderr
            wait_until(lambda: kinds(following.out, "b")[-1] == "run_ended", PATIENCE_S)
            joined = agentctl("join", "r", "--nodes", nodes["b"].target, "--via", nodes["a"].target)
            assert joined.returncode == 0, joined.stderr
            wait_until(lambda: kinds(following.out, "b").count("workers_started") == 2, PATIENCE_S)
            end.touch()
            assert following.wait() == 0, following.err
        # Who begins to look only now hears of both times, too.
        told = agentctl("events", "r", "--nodes", nodes.targets(), "-f", "-o", "jsonl").stdout
    for out in (told, following.out):
        assert [kind for kind in kinds(out, "b") if kind in ("run_started", "run_ended")] == [
            "run_started", "run_ended", "run_started", "run_ended",
        ]  # fmt: skip
        assert len(set(out.splitlines())) == len(out.splitlines()), "each event once"


def test_a_followed_history_tells_of_nodes_that_join_later(tmp_path: Path) -> None:
    script, end = write_script(
        tmp_path / "s.py", "import pathlib, sys, time",
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
    ), tmp_path / "end"  # fmt: skip
    with fleet(tmp_path, "a", "b") as nodes:
        run = ("run", "-d", "--nodes", nodes.targets("a"), "--nnodes", "1:2", "--run-id", "r")
        assert agentctl(*run, str(script), str(end)).returncode == 0
        with Controller(
            "events", "r", "--nodes", nodes.targets("a"), "-f", "-o", "jsonl", root=tmp_path
        ) as following:
            wait_until(lambda: '"workers_started"' in following.out, PATIENCE_S)
            joined = agentctl("join", "r", "--nodes", nodes["b"].target, "--via", nodes["a"].target)
            assert joined.returncode == 0, joined.stderr
            # All that happens to the new one while the run lives.
            wait_until(lambda: kinds(following.out, "b").count("workers_started") == 1, PATIENCE_S)
            end.touch()
            assert following.wait() == 0, following.err
    of_b = kinds(following.out, "b")
    assert (of_b[0], of_b[-1]) == ("run_started", "run_ended")
    assert len(set(following.out.splitlines())) == len(following.out.splitlines()), "each event once"
