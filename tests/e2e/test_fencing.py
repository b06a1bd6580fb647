"""A node out of touch with its hub: its old round writes no more, and is gone before a new one begins."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, Node, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 40.0
BRIEF = "heartbeat=0.2,lease=1.5"

# Writes a checkpoint each time its round may, and says so when it may not. Takes a while to end.
WRITER = (
    "import os, pathlib, signal, sys, time",
    "from agentd.elastic import StaleRoundError, assert_current_round",
    "folder, me = pathlib.Path(sys.argv[1]), (os.environ['AGENTD_NODE_ID'], os.environ['AGENTD_ROUND'])",
    "def note(name, *facts):",
    "    with open(folder / name, 'a') as file: print(*me, os.getpid(), *facts, file=file)",
    "def now(): return time.clock_gettime(time.CLOCK_BOOTTIME)",
    "def alive(pid):",
    "    try: return not open(f'/proc/{pid}/stat').read().rpartition(') ')[2].startswith(('Z', 'X'))",
    "    except OSError: return False",
    "former = [line.split() for line in open(folder / 'starts')] if (folder / 'starts').exists() else []",
    "former = [pid for node, round, pid, *_ in former if node == me[0] and int(round) < int(me[1])]",
    "living = [pid for pid in former if alive(pid)]",
    "note('starts', *living)",
    "def end(*_):",
    "    for _ in range(int(sys.argv[2])):",
    "        save('last')",
    "        time.sleep(0.1)",
    "    sys.exit(1)",
    "def save(name):",
    "    try: until = assert_current_round(0.1)",
    "    except StaleRoundError as error: return note('refused', error)",
    "    at = now()",
    "    if at < until: note(name, at)",
    "signal.signal(signal.SIGTERM, end)",
    "while True:",
    "    save('checkpoints')",
    "    time.sleep(0.05)",
)


@dataclass(frozen=True)
class Note:
    """A line that a worker wrote: who it is, and what it says."""

    node: str
    round: int
    pid: int
    said: str


class Training:
    """One run of `WRITER`, by what its workers wrote."""

    def __init__(self, nodes: Fleet, run_id: str, *flags: str, conf: str = BRIEF) -> None:
        self.run_id, self.folder, self._nodes = run_id, nodes.root / run_id, nodes
        self.folder.mkdir()
        program = () if "--spec" in flags else (str(writer(nodes)), str(self.folder), "5")
        done = agentctl(
            "run", "--detach", "--nodes", nodes.targets(), "--run-id", run_id, "--rdzv-conf", conf,
            *flags, *program,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def notes(self, name: str, node: str = "", round: int = 0) -> list[Note]:
        """The lines of one file, in order; of one node, or one round."""
        file = self.folder / name
        lines = file.read_text().splitlines() if file.exists() else []
        split = [line.split(" ", 3) for line in lines]
        found = [Note(each[0], int(each[1]), int(each[2]), "".join(each[3:])) for each in split]
        return [each for each in found if node in ("", each.node) and round in (0, each.round)]

    def writes(self, node: str, round: int) -> bool:
        return bool(self.notes("checkpoints", node, round))

    def pid(self, node: str) -> int:
        """Of the newest worker there."""
        return self.notes("starts", node)[-1].pid

    def counts(self, name: str) -> tuple[int, int]:
        """Round and restarts, as a node knows them."""
        status = self._nodes.status(self.run_id, name)
        return int(status["round"]), int(status.get("restart_count", 0))

    def stop(self) -> None:
        done = agentctl("stop", self.run_id, "--wait", "--grace", "0", "--nodes", self._nodes.targets())
        assert done.returncode == 0, done.stderr


def writer(nodes: Fleet) -> Path:
    return write_script(nodes.root / "writer.py", *WRITER)


def two_roles(nodes: Fleet, folder: Path) -> Path:
    """The spec of a run with another role on b, whose worker takes its time to end."""
    a, b = nodes["a"].target, nodes["b"].target
    file = nodes.root / "roles.toml"
    lines = [f'nodes = ["{a}", "{b}"]', "stop_grace = 10", "rendezvous.min_members = 1"]
    lines += ["rendezvous.max_members = 3"]
    for role, where, saves in (("brisk", f'"{a}", "{b}"', 1), ("slow", f'"{b}"', 20)):
        arguments = f'["{folder}", "{saves}"]'
        lines += ["[[roles]]", f'role = "{role}"', f"nodes = [{where}]", "[roles.command]"]
        lines += [f'entrypoint = "{writer(nodes)}"', f"arguments = {arguments}"]
    file.write_text("\n".join(lines) + "\n")
    return file


@contextmanager
def frozen(node: Node) -> Iterator[None]:
    """Meanwhile agentd runs no instruction; its hosts and workers do."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


def last_write(training: Training, round: int) -> float:
    names = ("checkpoints", "last")
    return max(float(note.said) for name in names for note in training.notes(name, round=round))


def first_write(training: Training, round: int) -> float:
    return min(float(note.said) for note in training.notes("checkpoints", round=round))


def test_a_node_with_a_frozen_agentd_writes_nothing_once_the_others_went_on(tmp_path: Path) -> None:
    with fleet(tmp_path, "a", "b") as nodes:
        flags = ("--nnodes", "1:2", "--stop-grace", "3")
        kept = Training(nodes, "kept", *flags)
        stopped = Training(nodes, "stopped", *flags, "--on-isolation", "stop")
        roles = Training(nodes, "roles", "--spec", str(two_roles(nodes, tmp_path / "roles")))
        for training in (kept, stopped, roles):
            wait_until(lambda each=training: each.writes("a", 1) and each.writes("b", 1), PATIENCE_S)  # type: ignore[misc]
        wait_until(lambda: len(roles.notes("starts", round=1)) == 3, PATIENCE_S)
        old = {training.run_id: training.pid("b") for training in (kept, stopped)}

        with frozen(nodes["b"]):
            for training in (kept, stopped, roles):
                wait_until(lambda each=training: each.writes("a", 2), PATIENCE_S)  # type: ignore[misc]
            wait_until(lambda: kept.notes("refused", "b", 1), PATIENCE_S)
            wait_until(lambda: is_gone(old["stopped"]), PATIENCE_S)
            assert not is_gone(old["kept"])

        for training in (kept, stopped):
            wait_until(lambda each=training: each.writes("a", 3) and each.writes("b", 3), PATIENCE_S)  # type: ignore[misc]
            assert training.counts("a") == (3, 0)
            for before, after in ((1, 2), (2, 3)):
                assert last_write(training, before) < first_write(training, after)
            assert not any(note.said for note in training.notes("starts")), "an old worker still ran"
        assert is_gone(old["kept"])
        events = agentctl("events", "stopped", "--nodes", nodes["b"].target).stdout
        assert "no contact with the hub since" in events
        # Of two roles on b the quick one waits for the slow one's old round.
        wait_until(lambda: len(roles.notes("starts", "b")) == 4, PATIENCE_S)
        assert {note.round for note in roles.notes("starts", "b")} == {1, 3}
        assert not any(note.said for note in roles.notes("starts")), "an old worker still ran"
        # A stop that the hub asked for leaves its grace for a last checkpoint.
        assert kept.notes("last", "a", 2)
        for training in (kept, stopped, roles):
            training.stop()


def test_a_hub_that_is_gone_is_waited_for_and_status_says_since_when(tmp_path: Path) -> None:
    with fleet(tmp_path, "a", "b") as nodes:
        kept = Training(nodes, "kept", "--max-restarts", "1")
        stopped = Training(nodes, "stopped", "--on-isolation", "stop", "--stop-grace", "3")
        brief = Training(nodes, "brief", "--max-restarts", "1", conf=f"{BRIEF},timeout=2")
        for training in (kept, stopped, brief):
            wait_until(lambda each=training: each.writes("a", 1) and each.writes("b", 1), PATIENCE_S)  # type: ignore[misc]
        old = {(each.run_id, node): each.pid(node) for each in (kept, stopped) for node in "ab"}
        began = time.time()
        nodes["a"].kill()

        # Both nodes stop by themselves what is to stop, also the one whose agentd is dead.
        wait_until(lambda: is_gone(old["stopped", "a"]) and is_gone(old["stopped", "b"]), PATIENCE_S)
        assert not is_gone(old["kept", "a"])
        assert not is_gone(old["kept", "b"])
        shown = nodes.status("kept", "b")
        since = datetime.fromisoformat(shown["hub_unreachable_since"].replace("Z", "+00:00")).timestamp()
        assert began - 5.0 < since < time.time()
        for told in (agentctl("status", "kept", "--nodes", nodes["b"].target), ps(nodes["b"])):
            assert f"hub {nodes['a'].target} unreachable since" in told.stdout

        # Failures wait for the hub: one longer than it may, one until it is there again.
        os.kill(brief.pid("b"), signal.SIGKILL)
        os.kill(kept.pid("b"), signal.SIGKILL)
        wait_until(lambda: nodes.phase("brief", "b") == "PHASE_FAILED", PATIENCE_S)
        reason = nodes.status("brief", "b")["reason"]
        assert f"hub {nodes['a'].target} unreachable since" in reason
        assert "--rdzv-endpoint" in reason
        assert nodes.phase("kept", "b") == "PHASE_RUNNING"
        assert not is_gone(old["kept", "a"])

        nodes.again("a")
        for training, restarts in ((kept, 1), (stopped, 0)):
            wait_until(lambda each=training: each.writes("a", 2) and each.writes("b", 2), PATIENCE_S)  # type: ignore[misc]
            assert training.counts("a") == (2, restarts)
            assert last_write(training, 1) < first_write(training, 2)
            assert not any(note.said for note in training.notes("starts"))
        assert "hub_unreachable_since" not in nodes.status("kept", "b")
        for training in (kept, stopped):
            training.stop()


def ps(node: Node) -> subprocess.CompletedProcess[str]:
    return agentctl("ps", "--nodes", node.target)
