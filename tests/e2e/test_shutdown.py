"""A machine that goes down without systemd's help: SIGTERM to agentd, hosts and workers all at once."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from agentd.api.types import Phase, RunStatus
from agentd.groups.journal import open_for_reading
from agentd_client import AgentClient
from tests.support.fleet import Fleet, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60.0

# Notes each start. Even ranks save for a second when they are stopped, odd ones die of SIGTERM at once.
WORKER = (
    "import os, pathlib, signal, sys, time",
    "folder, rank = pathlib.Path(sys.argv[1]), int(os.environ['RANK'])",
    "me = f\"{os.environ['AGENTD_NODE_ID']}-{rank}-{os.environ['TORCHELASTIC_RESTART_COUNT']}\"",
    "def save(signum, frame):",
    "    time.sleep(1.0)",
    "    (folder / f'saved-{me}').touch()",
    "    sys.exit(0)",
    "if rank % 2 == 0: signal.signal(signal.SIGTERM, save)",
    "with open(folder / 'starts', 'a') as starts: starts.write(f'{me} {os.getpid()}\\n')",
    "while True: time.sleep(0.05)",
)


def begin(nodes: Fleet, folder: Path, *flags: str) -> None:
    """A detached run of two workers a node, all of them up."""
    folder.mkdir()
    script = write_script(folder.parent / "worker.py", *WORKER)
    done = agentctl(
        "run", "--detach", "--nodes", nodes.targets(), "--nproc-per-node", "2", "--run-id", "r",
        "--max-restarts", "3", "--stop-grace", "20", *flags, str(script), str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(starts(folder)) == 2 * len(nodes.nodes), PATIENCE_S)
    wait_until(lambda: status(nodes).phase is Phase.RUNNING, PATIENCE_S)


def starts(folder: Path) -> list[str]:
    file = folder / "starts"
    return file.read_text().splitlines() if file.exists() else []


def status(nodes: Fleet, name: str = "a") -> RunStatus:
    """The run as a node knows it, the hub's by default."""
    with AgentClient(nodes[name].target) as client:
        return client.status("r")


def of_node(nodes: Fleet, name: str) -> tuple[list[int], list[int]]:
    """The hosts and the workers of a node, which only the node itself can tell."""
    (found,) = [node for node in status(nodes, name).nodes if node.node_id == name]
    return [group.host_pid for group in found.groups], [
        worker.pid for group in found.groups for worker in group.workers
    ]


def terminate(pids: list[int]) -> None:
    assert all(pid > 1 for pid in pids), "0 is this very process group"
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def last_phase(state_dir: Path) -> tuple[Phase, int]:
    """How the journal of a node that is down knows the run, and its restarts."""
    (run,) = open_for_reading(state_dir / "agentd.db").runs
    return run.status.phase, run.status.restart_count


@pytest.mark.parametrize("first", ["workers", "agentd"])
def test_a_node_that_goes_down_gives_workers_their_grace_and_its_run_is_stopped(
    tmp_path: Path, first: str
) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        begin(nodes, folder)
        began, (hosts, workers) = starts(folder), of_node(nodes, "a")
        order = [*workers, *hosts, nodes["a"].pid]
        terminate(order if first == "workers" else order[::-1])
        assert nodes["a"].process.wait(PATIENCE_S) == 0
        assert all(is_gone(pid) for pid in (*hosts, *workers))
        assert [file.name for file in folder.glob("saved-*")] == ["saved-a-0-0"], "each has its grace, once"
        assert starts(folder) == began, "nothing was started again in between"
        assert last_phase(nodes["a"].state_dir) == (Phase.STOPPED, 0)


def test_the_others_go_on_without_a_node_that_goes_down(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b", "c") as nodes:
        begin(nodes, folder, "--nnodes", "2:3")
        hosts, workers = of_node(nodes, "c")
        terminate([*workers, *hosts, nodes["c"].pid])
        assert nodes["c"].process.wait(PATIENCE_S) == 0
        assert all(is_gone(pid) for pid in (*hosts, *workers))

        wait_until(lambda: (status(nodes).round, status(nodes).phase) == (2, Phase.RUNNING), PATIENCE_S)
        assert status(nodes).restart_count == 0, "nobody has failed: a node has left"
        assert status(nodes).membership_changes == 1
        wait_until(lambda: len(starts(folder)) == 10, PATIENCE_S)
        again = [line.split("-")[0] for line in starts(folder)[6:]]
        assert sorted(again) == ["a", "a", "b", "b"]
        saved = {file.name.split("-")[1] for file in folder.glob("saved-*")}
        assert saved == {"a", "b", "c"}, "each had its grace"
        assert last_phase(nodes["c"].state_dir)[0] is Phase.STOPPED
