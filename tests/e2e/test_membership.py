"""`--nnodes MIN:MAX`: a run that grows, shrinks, keeps a spare, and ends well."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.fleet import Controller, Fleet, agentctl, fleet, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

UNTIL_TOLD = (
    "import os, pathlib, sys, time",
    "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
)
SHORT_LEASE = ("--rdzv-conf", "lease=1.5,heartbeat=0.3,reattach_window=1.5")


def running(nodes: Fleet, run_id: str, *names: str, at: str) -> bool:
    """Whether exactly the workers of these nodes run, all in one round."""
    status = nodes.status(run_id, at)
    groups = [
        (node["node_id"], group)
        for node in status["nodes"]
        for group in node.get("groups", [])
        if group["phase"] == "PHASE_RUNNING"
    ]
    ranks = sorted(int(worker.get("rank", 0)) for _, group in groups for worker in group["workers"])
    return (
        sorted(name for name, _ in groups) == sorted(names)
        and len({group["round"] for _, group in groups}) == 1
        and ranks == list(range(len(names)))
    )


def test_a_run_grows_shrinks_and_ends_well(tmp_path: Path) -> None:
    script = write_script(tmp_path / "wait.py", *UNTIL_TOLD)
    end = tmp_path / "end"
    with fleet(tmp_path, "a", "b", "c", "d", "e") as nodes:
        command = ["run", "--nodes", nodes.targets("a", "b"), "--nnodes", "2:4", "--run-id", "elastic"]
        with Controller(*command, *SHORT_LEASE, str(script), str(end), root=tmp_path) as run:
            wait_until(lambda: running(nodes, "elastic", "a", "b", at="a"), 60)

            for name, expected in (("c", "abc"), ("d", "abcd")):
                joined = agentctl(
                    "join", "elastic", "--nodes", nodes[name].target, "--via", nodes["a"].target
                )
                assert joined.returncode == 0, joined.stderr
                wait_until(lambda expected=expected: running(nodes, "elastic", *expected, at="a"), 60)  # type: ignore[misc]

            spare = agentctl("join", "elastic", "--nodes", nodes["e"].target, "--via", nodes["a"].target)
            assert spare.returncode == 0, spare.stderr
            wait_until(lambda: nodes.status("elastic", "a").get("spares"), 60)
            assert running(nodes, "elastic", *"abcd", at="a")

            left = agentctl("leave", "elastic", "--nodes", nodes["b"].target)
            assert left.returncode == 0, left.stderr
            wait_until(lambda: running(nodes, "elastic", *"acde", at="a"), 60)

            nodes["d"].lose()
            wait_until(lambda: running(nodes, "elastic", *"ace", at="a"), 60)

            status = nodes.status("elastic", "a")
            assert status["restart_count"] == 0
            assert status["membership_changes"] >= 4
            end.touch()
            assert run.wait() == 0, run.err


def test_a_node_whose_agent_fails_again_and_again_leaves_and_the_run_goes_on(tmp_path: Path) -> None:
    script = write_script(tmp_path / "wait.py", *UNTIL_TOLD)
    end = tmp_path / "end"
    with fleet(tmp_path, "a", "b") as nodes:
        command = [
            "run",
            "--detach",
            "--nodes",
            nodes.targets("a", "b"),
            "--nnodes",
            "1:2",
            "--run-id",
            "sick",
        ]
        started = agentctl(*command, "--max-restarts", "5", str(script), str(end))
        assert started.returncode == 0, started.stderr
        wait_until(lambda: running(nodes, "sick", "a", "b", at="a"), 60)
        # No host of b can write its reports any more, so that none lives for long.
        (reports,) = (nodes["b"].state_dir / "runs").rglob("host.jsonl")
        reports.unlink()
        reports.mkdir()
        (group,) = [g for n in nodes.status("sick", "b")["nodes"] if n["node_id"] == "b" for g in n["groups"]]
        os.kill(int(group["host_pid"]), signal.SIGKILL)
        wait_until(lambda: running(nodes, "sick", "a", at="a"), 60)
        wait_until(lambda: "hosts in a row were lost" in _reason(nodes, "sick", "b"), 60)
        assert nodes.phase("sick", "a") == "PHASE_RUNNING"
        end.touch()
        assert agentctl("wait", "sick", "--nodes", nodes["a"].target).returncode == 0


def _reason(nodes: Fleet, run_id: str, name: str) -> str:
    found = nodes.status(run_id, *nodes.nodes)["nodes"]
    return str(next((node["reason"] for node in found if node["node_id"] == name), ""))


def test_losing_more_than_the_minimum_stops_the_rest_and_waits(tmp_path: Path) -> None:
    script = write_script(tmp_path / "wait.py", *UNTIL_TOLD)
    end = tmp_path / "end"
    with fleet(tmp_path, "a", "b") as nodes:
        command = ["run", "--detach", "--nodes", nodes.targets("a", "b"), "--run-id", "pair"]
        started = agentctl(*command, *SHORT_LEASE, str(script), str(end))
        assert started.returncode == 0, started.stderr
        wait_until(lambda: running(nodes, "pair", "a", "b", at="a"), 60)
        nodes["b"].lose()
        wait_until(lambda: nodes.phase("pair", "a") == "PHASE_RENDEZVOUS", 60)
        assert not nodes.workers("pair")
        told = agentctl("events", "pair", "--nodes", nodes["a"].target).stdout
        assert "node lost" in told, told

        nodes.start("b2")
        joined = agentctl("join", "pair", "--nodes", nodes["b2"].target, "--via", nodes["a"].target)
        assert joined.returncode == 0, joined.stderr
        wait_until(lambda: running(nodes, "pair", "a", "b2", at="a"), 60)
        end.touch()
        assert agentctl("wait", "pair", "--nodes", nodes["a"].target).returncode == 0


def test_a_run_whose_nodes_cannot_all_join_times_out_naming_them(tmp_path: Path) -> None:
    script = write_script(tmp_path / "wait.py", *UNTIL_TOLD)
    nobody = "127.0.0.1:1"
    with fleet(tmp_path, "a") as nodes:
        done = agentctl(
            "run",
            "--nodes",
            f"{nodes['a'].target},{nobody}",
            "--run-id",
            "lonely",
            "--rdzv-conf",
            "join_timeout=6",
            str(script),
            str(tmp_path / "end"),
        )
        status = nodes.status("lonely", "a")
    assert done.returncode != 0
    assert status["phase"] == "PHASE_FAILED"
    for text in (status["reason"], done.stderr):
        assert (
            f"Expected: {nodes['a'].target}, {nobody}; joined: {nodes['a'].target}; missing: {nobody}."
            in text
        )
