"""What an agentd's worker groups went through stands in its journal, for whoever asks with sqlite3."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.events import Event, EventSource
from tests.support.fleet import Node, agentctl, agentd, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

AFRESH = (
    "import os, sys",
    "sys.exit(int(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1'))",
)


def recorded(node: Node, run_id: str) -> list[Event]:
    """The events of the run, oldest first."""
    uri = f"file:{node.state_dir / 'agentd.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        rows = db.execute("SELECT event FROM elastic_events WHERE run_id = ? ORDER BY id", (run_id,))
        return [Event.deserialize(row[0]) for row in rows]


def run(node: Node, script: Path, run_id: str, *flags: str) -> int:
    return agentctl(
        "run", "--nodes", node.target, "--run-id", run_id, "--nproc-per-node", "2", *flags, str(script)
    ).returncode


def told(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(event.metadata["metadata"]))
    return found


def test_a_run_with_a_restart_is_told_round_by_round_and_survives_the_daemon(tmp_path: Path) -> None:
    script = write_script(tmp_path / "afresh.py", *AFRESH)
    with agentd(tmp_path) as node:
        assert run(node, script, "job", "--max-restarts", "2") == 0
        wait_until(lambda: len(_ends(recorded(node, "job"))) == 2)
        node.kill()
    with agentd(tmp_path) as node:
        events = recorded(node, "job")
    starts = [event for event in events if event.metadata["state"] == "START"]
    assert [(e.metadata["global_rank"], e.metadata["agent_restarts"]) for e in starts] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    ]
    assert [told(event)["round"] for event in starts] == [1, 1, 2, 2]
    assert [event.metadata["state"] for event in _ends(events)] == ["SUCCEEDED", "SUCCEEDED"]
    assert sum(event.metadata["state"] == "RENDEZVOUS" for event in events) == 2
    assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)
    assert {event.metadata["run_id"] for event in events} == {"job"}


def test_the_journal_tells_which_worker_failed_the_run_and_how(tmp_path: Path) -> None:
    script = write_script(
        tmp_path / "fails.py",
        "import os, signal, time",
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)",
        "time.sleep(60)",
    )
    with agentd(tmp_path) as node:
        assert run(node, script, "job") != 0
        wait_until(lambda: len(_ends(recorded(node, "job"))) == 2)
        ends = {event.metadata["global_rank"]: event for event in _ends(recorded(node, "job"))}
    assert {rank: event.metadata["state"] for rank, event in ends.items()} == {0: "TERMINATED", 1: "FAILED"}
    assert told(ends[1])["exit_code"] == -9
    assert "SIGKILL" in str(ends[1].metadata["raw_error"])


def _ends(events: list[Event]) -> list[Event]:
    """Of workers."""
    ends = ("SUCCEEDED", "FAILED", "TERMINATED")
    return [e for e in events if e.source is EventSource.WORKER and e.metadata["state"] in ends]
