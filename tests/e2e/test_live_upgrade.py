"""agentd is upgraded by one version under a run: the host that goes on is the real old code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, agentctl, agentd, fleet, is_gone, write_script
from tests.support.hosts import PREVIOUS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60.0

# Fails once a file is there; in the next round it stays.
WORKER = (
    "import os, pathlib, sys, time",
    "again = os.environ['TORCHELASTIC_RESTART_COUNT'] != '0'",
    "while again or not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
    "sys.exit(5)",
)


@pytest.fixture
def previous_hosts(tmp_path: Path) -> dict[str, str]:
    """The environment of an agentd whose hosts are of the previous version."""
    write_script(
        tmp_path / "site" / "sitecustomize.py",
        "import agentd.host.door",
        f"agentd.host.door.PACKAGES = {str(PREVIOUS)!r}",
    )
    return {"PYTHONPATH": str(tmp_path / "site")}


def group(nodes: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = nodes.status("r")["nodes"][0]["groups"][0]
    return found


def test_a_host_of_the_previous_version_is_adopted_restarts_its_workers_and_stops(
    tmp_path: Path, previous_hosts: dict[str, str]
) -> None:
    script, fails = write_script(tmp_path / "worker.py", *WORKER), tmp_path / "fails"
    with fleet(tmp_path) as nodes:
        nodes.nodes["a"] = nodes.stack.enter_context(agentd(tmp_path, "a", env=previous_hosts))
        done = agentctl(
            "run", "--detach", "--nodes", nodes.targets(), "--nproc-per-node", "2", "--run-id", "r",
            "--max-restarts", "1", str(script), str(fails),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        wait_until(lambda: len(nodes.workers("r")) == 2, PATIENCE_S)
        host, workers = int(group(nodes)["host_pid"]), nodes.workers("r")
        assert str(PREVIOUS) in Path(f"/proc/{host}/environ").read_text()

        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: len(nodes.workers("r")) == 2, PATIENCE_S)
        assert [worker["pid"] for worker in nodes.workers("r")] == [worker["pid"] for worker in workers]

        fails.touch()
        wait_until(lambda: nodes.status("r")["round"] == 2 and len(nodes.workers("r")) == 2, PATIENCE_S)
        shown = nodes.status("r")
        assert (int(group(nodes)["host_pid"]), shown["restart_count"]) == (host, 1)
        assert shown["first_failure"]["exit_code"] == 5
        done = agentctl("stop", "r", "--wait", "--nodes", nodes.targets())
        assert done.returncode == 0, done.stderr
        assert nodes.phase("r") == "PHASE_STOPPED"
        assert is_gone(host)
