"""A node out of touch with its hub: its old round writes no more, and is gone before a new one begins."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentd.api.types import Command, IsolationPolicy, Phase, RendezvousSpec, RoleSpec, RunSpec, RunStatus
from agentd_client import AgentClient
from agentd_client import Fleet as Clients
from tests.support.fleet import Fleet, Node, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0
LEASE_S = 1.5
STOP = IsolationPolicy.STOP

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
    """A run of `WRITER`, by what its workers wrote."""

    def __init__(self, nodes: Fleet, run_id: str) -> None:
        self.run_id, self.folder, self._nodes = run_id, nodes.root / run_id, nodes
        self.folder.mkdir()

    def begin(self, *roles: RoleSpec, hub_timeout: float = 600.0, fewest: int = 0, **changes: object) -> None:
        """On all nodes, the first being the hub."""
        targets = [node.target for node in self._nodes.nodes.values()]
        rendezvous = RendezvousSpec(heartbeat=0.2, lease=LEASE_S, min_members=fewest, hub_timeout=hub_timeout)
        fields = {"nodes": tuple(targets), "rendezvous": rendezvous, "stop_grace": 5.0, **changes}
        with Clients(targets) as clients:
            clients.run(RunSpec(run_id=self.run_id, roles=roles or (self.role(),), **fields))  # type: ignore[arg-type]

    def role(self, name: str = "default", *on: str, saves: int = 5) -> RoleSpec:
        """`saves`: attempts to write, 0.1 s apart, between SIGTERM and the end of a worker."""
        script = write_script(self._nodes.root / "writer.py", *WRITER)
        command = Command(
            entrypoint=str(script), arguments=(str(self.folder), str(saves)), python=sys.executable
        )
        return RoleSpec(role=name, nodes=tuple(self._nodes[name].target for name in on), command=command)

    def notes(self, name: str, node: str = "", round: int = 0) -> list[Note]:
        """The lines of one file, in order; of one node, or one round."""
        file = self.folder / name
        lines = file.read_text().splitlines() if file.exists() else []
        split = [line.split(" ", 3) for line in lines]
        found = [Note(each[0], int(each[1]), int(each[2]), "".join(each[3:])) for each in split]
        return [each for each in found if node in ("", each.node) and round in (0, each.round)]

    def writes(self, round: int, *on: str) -> bool:
        """Whether workers of that round have written on all these nodes."""
        return all(self.notes("checkpoints", node, round) for node in on)

    def pid(self, node: str) -> int:
        """Of the newest worker there."""
        return self.notes("starts", node)[-1].pid

    def told(self, by: str) -> RunStatus:
        """The run as one node knows it."""
        with AgentClient(self._nodes[by].target) as client:
            return client.status(self.run_id)

    def kept_order(self, *rounds: int) -> bool:
        """Whether each of these rounds wrote its last before the next wrote its first."""
        times = [
            [float(note.said) for name in ("checkpoints", "last") for note in self.notes(name, round=each)]
            for each in rounds
        ]
        return all(max(before) < min(after) for before, after in itertools.pairwise(times))

    def kept_apart(self) -> bool:
        """Whether no worker began on a node where one of an older round still ran."""
        return not any(note.said for note in self.notes("starts"))


@contextmanager
def frozen(node: Node) -> Iterator[None]:
    """Meanwhile agentd runs no instruction; its hosts and workers do."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


def until_all(trainings: tuple[Training, ...], holds: Callable[[Training], bool]) -> None:
    for each in trainings:
        wait_until(lambda each=each: holds(each), PATIENCE_S, what=each.run_id)  # type: ignore[misc]


def test_a_node_with_a_frozen_agentd_writes_nothing_once_the_others_went_on(tmp_path: Path) -> None:
    with fleet(tmp_path, "a", "b") as nodes:
        kept, stopped, roles = trainings = tuple(
            Training(nodes, name) for name in ("kept", "stopped", "roles")
        )
        kept.begin(fewest=1)
        stopped.begin(fewest=1, on_isolation=STOP)
        # On b the worker of one role takes its time to end.
        roles.begin(roles.role("brisk", "a", "b", saves=1), roles.role("slow", "b", saves=10), fewest=1)
        until_all(trainings, lambda each: each.writes(1, "a", "b"))
        wait_until(lambda: len(roles.notes("starts", round=1)) == 3, PATIENCE_S)
        old = {each.run_id: each.pid("b") for each in trainings}

        with frozen(nodes["b"]):
            until_all(trainings, lambda each: each.writes(2, "a"))
            wait_until(lambda: kept.notes("refused", "b", 1), PATIENCE_S)
            wait_until(lambda: is_gone(old["stopped"]), PATIENCE_S)
            assert not is_gone(old["kept"])

        until_all(trainings, lambda each: each.writes(3, "a", "b"))
        wait_until(lambda: len(roles.notes("starts", "b", 3)) == 2, PATIENCE_S)
        for each in trainings:
            told = each.told("a")
            assert (told.round, told.restart_count, each.kept_order(1, 2, 3), each.kept_apart()) == (
                3, 0, True, True,
            ), each.run_id  # fmt: skip
        # A stop that the hub asked for leaves its grace for a last checkpoint.
        assert kept.notes("last", "a", 2)
        assert not kept.notes("last", "b", 1)
        events = agentctl("events", "stopped", "--nodes", nodes["b"].target).stdout
        assert "no contact with the hub since" in events


def test_a_hub_that_is_gone_is_waited_for_and_status_says_since_when(tmp_path: Path) -> None:
    with fleet(tmp_path, "a", "b") as nodes:
        kept, stopped, brief = trainings = tuple(
            Training(nodes, name) for name in ("kept", "stopped", "brief")
        )
        kept.begin(max_restarts=1)
        stopped.begin(on_isolation=STOP)
        brief.begin(max_restarts=1, hub_timeout=5.0)
        until_all(trainings, lambda each: each.writes(1, "a", "b"))
        old = {(each.run_id, node): each.pid(node) for each in (kept, stopped) for node in "ab"}
        began = time.time()
        nodes["a"].kill()

        # Both hosts stop by themselves what is to stop, also the one whose agentd is dead.
        wait_until(lambda: is_gone(old["stopped", "a"]) and is_gone(old["stopped", "b"]), PATIENCE_S)
        assert not is_gone(old["kept", "a"])
        assert not is_gone(old["kept", "b"])
        assert began - LEASE_S < kept.told("b").hub_unreachable_since < time.time()
        silence = f"hub {nodes['a'].target} unreachable since"
        for command in (("status", "kept"), ("ps",)):
            assert silence in agentctl(*command, "--nodes", nodes["b"].target).stdout

        # A failure waits for the hub: in one run longer than it may, in one until it is there again.
        os.kill(brief.pid("b"), signal.SIGKILL)
        os.kill(kept.pid("b"), signal.SIGKILL)
        wait_until(lambda: brief.told("b").phase is Phase.FAILED, PATIENCE_S)
        assert silence in brief.told("b").reason
        assert "--rdzv-endpoint" in brief.told("b").reason
        assert kept.told("b").phase is Phase.RUNNING
        assert not is_gone(old["kept", "a"])

        nodes.again("a")
        for each, restarts in ((kept, 1), (stopped, 0)):
            wait_until(lambda each=each: each.writes(2, "a", "b"), PATIENCE_S)  # type: ignore[misc]
            told = each.told("a")
            assert (told.round, told.restart_count, each.kept_order(1, 2), each.kept_apart()) == (
                2, restarts, True, True,
            ), each.run_id  # fmt: skip
        assert not kept.told("b").hub_unreachable_since
