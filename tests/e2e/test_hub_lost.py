"""The hub's node is gone for good: what can go on does, what needs the hub ends and says what to do."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from agentd.api.types import Phase
from agentd_client import AgentClient
from tests.support.fleet import Fleet, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0
HUB_TIMEOUT_S = 5.0

WORKER = (
    "import os, pathlib, sys, time",
    "name = os.environ['AGENTD_NODE_ID'] + '-' + os.environ['AGENTD_INCARNATION']",
    "(pathlib.Path(sys.argv[1]) / name).write_text(str(os.getpid()))",
    "time.sleep(600)",
)


def begin(nodes: Fleet, folder: Path, *names: str, hub: str) -> dict[str, int]:
    """The same run on these nodes, its hub on one of them; the pid of each node's worker."""
    script = write_script(nodes.root / "worker.py", *WORKER)
    done = agentctl(
        "run", "--detach", "--nodes", nodes.targets(*names), "--nnodes", "1:3", "--run-id", "r",
        "--max-restarts", "3", "--rdzv-endpoint", nodes[hub].target,
        "--rdzv-conf", f"hub_timeout={HUB_TIMEOUT_S:g},lease=1.5,heartbeat=0.2,last_call=30",
        str(script), str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    incarnation = nodes.status("r", names[-1])["incarnation"]
    files = {name: folder / f"{name}-{incarnation}" for name in names}
    wait_until(lambda: all(file.exists() and file.read_text() for file in files.values()), PATIENCE_S)
    wait_until(lambda: len(nodes.workers("r")) >= len(names), PATIENCE_S)
    return {name: int(file.read_text()) for name, file in files.items()}


def phase(nodes: Fleet, name: str) -> Phase:
    """The run as one node alone knows it."""
    with AgentClient(nodes[name].target) as client:
        return client.status("r").phase


def test_a_run_whose_hubs_node_is_lost_ends_when_it_needs_the_hub_and_begins_elsewhere(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with fleet(tmp_path, "a", "b", "c") as nodes:
        pids = begin(nodes, folder, "a", "b", "c", hub="a")
        target = nodes["a"].target
        began = time.monotonic()
        nodes["a"].lose()
        assert is_gone(pids["a"])
        wait_until(lambda: "hub_unreachable_since" in nodes.status("r", "b"), PATIENCE_S)

        # As long as nothing needs the hub, its absence ends nothing.
        wait_until(lambda: time.monotonic() > began + HUB_TIMEOUT_S + 1.0, PATIENCE_S)
        assert phase(nodes, "b") is phase(nodes, "c") is Phase.RUNNING
        assert not is_gone(pids["b"])

        # A failure does: its own node ends in time, and says where and since when the hub is silent.
        needed = time.monotonic()
        os.kill(pids["b"], signal.SIGKILL)
        wait_until(lambda: phase(nodes, "b") is Phase.FAILED, PATIENCE_S)
        assert time.monotonic() - needed > HUB_TIMEOUT_S - 1.0
        reason = nodes.status("r", "b")["reason"]
        assert re.search(rf"hub {re.escape(target)} unreachable since \d{{4}}-", reason)
        assert "--rdzv-endpoint" in reason
        assert phase(nodes, "c") is Phase.RUNNING, "where nothing has failed it goes on"

        # The next step: what still runs is stopped, and the same begins with another hub.
        with AgentClient(nodes["c"].target) as client:
            client.stop("r")
        wait_until(lambda: phase(nodes, "c") is Phase.STOPPED, PATIENCE_S)
        assert is_gone(pids["c"])
        again = begin(nodes, folder, "b", "c", hub="b")
        assert agentctl("stop", "r", "--wait", "--nodes", nodes.targets("b", "c")).returncode == 0
        assert all(is_gone(pid) for pid in again.values())
