"""What happened can be asked for afterwards: over restarts, failures, stops, and agentds that were killed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from agentctl.exits import ExitCode
from tests.support.fleet import Controller, Node, agentctl, agentd, fleet, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

FAILS_ONCE = (
    "import os, sys, time",
    "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1': sys.exit(7)",
    "time.sleep(1000 if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' else 0)",
)


def told(target: str, *arguments: str) -> list[dict[str, Any]]:
    done = agentctl("events", *arguments, "--nodes", target, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["events"]
    return found


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["kind"] for event in events]


def is_in_order(wanted: Iterable[str], found: Iterable[str]) -> bool:
    rest = iter(found)
    return all(word in rest for word in wanted)


def run(target: str, run_id: str, script: Path, *flags: str) -> int:
    return agentctl(
        "run", "--nodes", target, "--run-id", run_id, "--stop-grace", "5", *flags, str(script)
    ).returncode


def test_a_run_with_a_failure_and_a_restart_is_told_with_ranks_pids_and_reasons(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", *FAILS_ONCE)
    with agentd(tmp_path) as node:
        assert run(node.target, "job", script, "--nproc-per-node", "2", "--max-restarts", "1") == 0
        wait_until(lambda: "run_ended" in kinds(told(node.target, "job")), 60)
        events = told(node.target, "job")
        text = agentctl("events", "job", "--nodes", node.target).stdout
    assert is_in_order(
        [
            "run_started", "host_started", "round_formed", "workers_started", "worker_ended",
            "workers_failed", "round_stopped", "round_formed", "workers_started", "worker_ended", "run_ended",
        ],
        kinds(events),
    )  # fmt: skip
    starts = [event for event in events if event["kind"] == "workers_started"]
    assert [[w["rank"] for w in event["workers"]] for event in starts] == [[0, 1], [0, 1]]
    assert [event["round"] for event in starts] == [1, 2]
    assert all(worker["pid"] > 1 for event in starts for worker in event["workers"])
    failed = next(event for event in events if event["kind"] == "workers_failed")
    assert [(w["rank"], w["exit_code"]) for w in failed["workers"]] == [(1, 7)]
    assert events[-1]["phase"] == "PHASE_SUCCEEDED"
    assert [event["id"] for event in events] == sorted({event["id"] for event in events}, key=int)
    assert "rank 1, pid" in text
    assert "exit code 7" in text


def test_history_outlives_a_killed_agentd_and_tells_of_its_death(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "pass")
    with agentd(tmp_path) as node:
        assert run(node.target, "first", script) == 0
        wait_until(lambda: "run_ended" in kinds(told(node.target, "first")), 60)
        before = told(node.target, "first")
        node.kill()
    with agentd(tmp_path) as node:
        assert told(node.target, "first") == before
        assert run(node.target, "second", script) == 0
        everything = told(node.target)
        shown = agentctl("ps", "--all", "--nodes", node.target, "-o", "json")
        assert node.stop() == 0
    with agentd(tmp_path) as node:
        last_start = [event for event in told(node.target) if event["kind"] == "agentd_started"][-1]
    starts = [event["detail"] for event in everything if event["kind"] == "agentd_started"]
    assert len(starts) == 2
    assert "was killed or crashed" in starts[1]
    assert "ended in order" in last_start["detail"]
    assert [found["run_id"] for found in json.loads(shown.stdout)["runs"]] == ["second", "first"]


def test_a_stop_is_told_with_who_asked_for_it_and_why(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "import time", "time.sleep(1000)")
    with fleet(tmp_path, "a", "b") as nodes:
        started = agentctl("run", "-d", "--nodes", nodes.targets(), "--run-id", "r", str(script))
        assert started.returncode == 0, started.stderr
        wait_until(lambda: len(nodes.workers("r")) == 2, 60)
        stopped = agentctl(
            "stop", "r", "--nodes", nodes.targets("a"), "--wait", "--grace", "2", "--reason", "night is over"
        )
        assert stopped.returncode == 0, stopped.stderr
        # One node that knows the run leads to all of them.
        wait_until(lambda: kinds(told(nodes.targets("a"), "r")).count("run_ended") == 2, 60)
        events = told(nodes.targets("a"), "r")
        of_b = told(nodes.targets(), "r", "--node", "b")
    asked = [event for event in events if event["kind"] == "stop_asked"]
    assert asked
    assert "night is over" in asked[0]["detail"]
    assert "127.0.0.1:" in asked[0]["detail"]
    assert {event["node_id"] for event in events} == {"a", "b"}
    assert {event["node_id"] for event in of_b} == {"b"}
    times = [event["time"] for event in events]
    assert len(times) == len(events)


def test_a_followed_history_ends_with_the_run(tmp_path: Path) -> None:
    script, end = write_script(
        tmp_path / "s.py", "import pathlib, sys, time",
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
    ), tmp_path / "end"  # fmt: skip
    with agentd(tmp_path) as node:
        agentctl("run", "-d", "--nodes", node.target, "--run-id", "r", str(script), str(end))
        follow = ["events", "r", "--nodes", node.target, "-f", "-o", "jsonl"]
        with Controller(*follow, root=tmp_path) as following:
            wait_until(lambda: '"workers_started"' in following.out, 60)
            end.touch()
            assert following.wait() == 0, following.err
            found = [json.loads(line) for line in following.out.splitlines()]
    assert found[-1]["kind"] == "run_ended"
    ids = [int(event["id"]) for event in found]
    assert ids == sorted(set(ids))


def test_a_run_nobody_knows_has_no_history_and_a_node_that_is_away_is_named(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "pass")
    with agentd(tmp_path) as node:
        unknown = agentctl("events", "nobody", "--nodes", node.target)
        assert run(node.target, "r", script) == 0
        partly = agentctl("events", "r", "--nodes", f"{node.target},127.0.0.1:9", "--deadline", "2")
    assert unknown.returncode == ExitCode.NOT_FOUND
    assert partly.returncode == ExitCode.PARTIAL
    assert "run started" in partly.stdout
    assert "127.0.0.1:9" in partly.stderr


def test_a_damaged_journal_is_shown_and_refuses_no_run(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "pass")
    with agentd(tmp_path) as node:
        assert node.stop() == 0
        journal = _journal(node)
    journal.write_bytes(b"garbage " * 2000)
    with agentd(tmp_path) as node:
        nodes = agentctl("nodes", "--nodes", node.target)
        checked = agentctl("nodes", "--check", "--nodes", node.target)
        assert run(node.target, "r", script) == 0
        events = told(node.target)
        log = node.log.read_text()
    assert "JOURNAL_DAMAGED" in nodes.stdout
    assert "agentd.db.damaged-" in nodes.stderr
    assert checked.returncode == ExitCode.UNHEALTHY
    assert log.count("the journal is damaged") == 1
    assert "journal_damaged" in kinds(events)
    assert list(journal.parent.glob("agentd.db.damaged-*"))


def _journal(node: Node) -> Path:
    return node.state_dir / "agentd.db"


def test_an_old_run_is_gone_with_its_logs_after_the_next_start(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "pass")
    with agentd(tmp_path) as node:
        for run_id in ("old", "new"):
            assert run(node.target, run_id, script) == 0
        assert node.stop() == 0
        journal = _journal(node)
    with contextlib.closing(sqlite3.connect(journal)) as db, db:
        db.execute("UPDATE runs SET ended_at = ended_at - 7200 WHERE run_id = 'old'")
    with agentd(tmp_path, "a", "--retention-age", "1h") as node:
        wait_until(lambda: not (node.state_dir / "runs" / "old").exists(), 60)
        wait_until(
            lambda: agentctl("events", "old", "--nodes", node.target).returncode == ExitCode.NOT_FOUND, 20
        )
        shown = agentctl("ps", "--all", "--nodes", node.target)
    assert (node.state_dir / "runs" / "new").exists()
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["RUN", "new"]


def test_a_run_that_outlived_its_agentd_is_told_whole_and_nothing_twice(tmp_path: Path) -> None:
    script, end = write_script(
        tmp_path / "s.py", "import pathlib, sys, time",
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
    ), tmp_path / "end"  # fmt: skip
    with fleet(tmp_path, "a") as nodes:
        start = ["run", "-d", "--nodes", nodes.targets(), "--run-id", "r", "--nproc-per-node", "2"]
        assert agentctl(*start, str(script), str(end)).returncode == 0
        wait_until(lambda: "workers_started" in kinds(told(nodes.targets(), "r")), 60)
        before = told(nodes.targets(), "r")
        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: "host_met" in kinds(told(nodes.targets(), "r")), 60)
        end.touch()
        wait_until(lambda: "run_ended" in kinds(told(nodes.targets(), "r")), 60)
        events = told(nodes.targets(), "r")
    assert events[: len(before)] == before
    later = kinds(events[len(before) :])
    assert is_in_order(["agentd_started", "host_met", "worker_ended", "run_ended"], later)
    counts = {kind: kinds(events).count(kind) for kind in ("run_started", "workers_started", "worker_ended")}
    assert counts == {"run_started": 1, "workers_started": 1, "worker_ended": 2}
