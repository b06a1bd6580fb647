"""`agentctl drain`: a node is emptied and given back, over the death of its agentd, and closes no run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agentctl.exits import ExitCode
from agentd_client import (
    AgentClient,
    Command,
    Drain,
    DrainMode,
    InvalidSpec,
    NodeInfo,
    Phase,
    RendezvousSpec,
    RoleSpec,
    RunSpec,
    RunStatus,
)
from agentd_client import Fleet as Clients
from tests.support.fleet import Controller, Fleet, agentctl, fleet, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0
UNTIL_TOLD = (
    "import os, pathlib, sys, time",
    "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
)


def start(nodes: Fleet, end: Path, on: str, run_id: str = "r", fewest: int = 0) -> None:
    """A run of one worker a node, until `end` is there."""
    script = write_script(end.parent / "wait.py", *UNTIL_TOLD)
    program = Command(entrypoint=str(script), arguments=(str(end),), python=sys.executable)
    sizes = RendezvousSpec(min_members=fewest, max_members=len(on) if fewest else 0)
    spec = RunSpec(run_id=run_id, roles=(RoleSpec(command=program),), rendezvous=sizes, stop_grace=600)
    with Clients([nodes[name].target for name in on]) as clients:
        clients.run(spec)


def workers(nodes: Fleet, at: str, run_id: str = "r") -> dict[str, int]:
    """Node to pid of each worker of the newest round, as `at` and those it names tell."""
    run = status(nodes, at, run_id)
    return {
        node.node_id: worker.pid
        for node in run.nodes
        for group in node.groups
        if group.phase is Phase.RUNNING and group.round == run.round
        for worker in group.workers
    }


def status(nodes: Fleet, at: str, run_id: str = "r") -> RunStatus:
    """The whole run, by any node that knows it."""
    with Clients([nodes[at].target]) as clients:
        return clients.find(run_id).status().status


def shown(nodes: Fleet, name: str) -> NodeInfo:
    with AgentClient(nodes[name].target) as client:
        return client.get_node()


def state(table: str) -> str:
    """The word for the one node in the table of `agentctl nodes`."""
    return table.splitlines()[1].split()[2]


def join(nodes: Fleet, name: str, via: str) -> None:
    with Clients([nodes[via].target]) as clients:
        assert clients.find("r").join([nodes[name].target]).complete


def drain(nodes: Fleet, name: str, deadline: float) -> None:
    with AgentClient(nodes[name].target) as client:
        client.drain(deadline=deadline)


def health(nodes: Fleet, name: str, service: str = "") -> str:
    with AgentClient(nodes[name].target) as client:
        return client.health(service)


def accepts(nodes: Fleet, name: str) -> bool:
    return health(nodes, name, "agentd.v1.AgentService") == "SERVING"


def test_a_drained_node_waits_for_its_run_and_takes_no_other_until_it_is_given_back(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with fleet(tmp_path, "a") as nodes:
        target = nodes["a"].target
        start(nodes, end, "a")
        before = wait_until(lambda: workers(nodes, "a"), PATIENCE_S)
        drained = agentctl("drain", target, "--detach", "--reason", "new disk", "-o", "json")
        assert drained.returncode == 0, drained.stderr
        assert "it waits for run r to end" in drained.stderr
        assert "is the hub of run r" in drained.stderr
        assert json.loads(drained.stdout)["nodes"][0]["drain"]["mode"] == "DRAIN_MODE_WAIT"

        refused = agentctl("run", "--nodes", target, "--run-id", "other", str(tmp_path / "wait.py"), str(end))
        assert refused.returncode == ExitCode.REFUSED
        assert "new disk" in refused.stderr
        assert "agentctl undrain" in refused.stderr
        assert not accepts(nodes, "a")
        assert health(nodes, "a") == "SERVING"
        checked = agentctl("nodes", "--check", "--nodes", target)
        assert (checked.returncode, state(checked.stdout)) == (ExitCode.UNHEALTHY, "draining")
        # A repeated wish for the run that is there is no new run.
        start(nodes, end, "a")

        in_force = shown(nodes, "a").drain
        assert in_force is not None
        since = in_force.since
        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: workers(nodes, "a") == before, PATIENCE_S)
        assert shown(nodes, "a").drain == Drain(mode=DrainMode.WAIT, since=since, reason="new disk")
        assert not accepts(nodes, "a")

        with Controller("drain", target, "--reason", "again", root=tmp_path) as following:
            wait_until(lambda: "r/default running" in following.err, PATIENCE_S)
            end.touch()
            assert following.wait() == 0, following.err
            assert "is empty" in following.err
        assert status(nodes, "a").phase is Phase.SUCCEEDED
        assert state(agentctl("nodes", "--nodes", target).stdout) == "drained"
        assert shown(nodes, "a").drain == Drain(mode=DrainMode.WAIT, since=since, reason="again")

        back = agentctl("undrain", target)
        assert back.returncode == 0, back.stderr
        assert accepts(nodes, "a")
        start(nodes, end, "a", run_id="other")
        wait_until(lambda: status(nodes, "a", "other").phase is Phase.SUCCEEDED, PATIENCE_S)
        told = agentctl("events", "--nodes", target).stdout
        assert told.count("node drained") == 2
        assert told.count("node undrained") == 1
        _refuses_what_makes_no_sense(target)


def _refuses_what_makes_no_sense(target: str) -> None:
    for flags, code in (
        (["127.0.0.1:1"], ExitCode.UNREACHABLE),
        ([target, "127.0.0.1:1", "--detach"], ExitCode.PARTIAL),
    ):
        done = agentctl("drain", *flags)
        assert done.returncode == code, (flags, done.stderr)
        assert "Traceback" not in done.stderr
    with AgentClient(target) as client:
        assert client.undrain() is not None  # one of those above drained it
        for wrong in ({"deadline": 0.0}, {"deadline": 1e9}, {"grace": 1e9}, {"reason": "x" * 2000}):
            with pytest.raises(InvalidSpec):
                client.drain(**wrong)
        with pytest.raises(InvalidSpec):
            client.drain(mode=DrainMode.MOVE, deadline=5.0)
        assert client.get_node().drain is None


def test_a_run_moves_off_drained_nodes_and_its_hub_stays(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with fleet(tmp_path, "a", "b", "c") as nodes:
        start(nodes, end, "ab", fewest=2)
        wait_until(lambda: set(workers(nodes, "a")) == set("ab"), PATIENCE_S)
        join(nodes, "c", via="a")
        wait_until(lambda: status(nodes, "a").spares, PATIENCE_S)

        moved = agentctl("drain", nodes["b"].target, "--move")
        assert moved.returncode == 0, moved.stderr
        assert "it leaves run r" in moved.stderr
        assert "is empty" in moved.stderr
        wait_until(lambda: set(workers(nodes, "a")) == set("ac"), PATIENCE_S)  # the spare stepped in

        # Below its fewest the run waits; the drained node is still its hub, and says so.
        moved = agentctl("drain", nodes["a"].target, "--move")
        assert moved.returncode == 0, moved.stderr
        assert "is empty, and is the hub of run r" in moved.stderr
        wait_until(lambda: status(nodes, "a").phase is Phase.RENDEZVOUS, PATIENCE_S)
        refused = agentctl("join", "r", "--nodes", nodes["b"].target, "--via", nodes["c"].target)
        assert "is drained" in refused.stderr
        assert "was not drained" in agentctl("undrain", nodes["b"].target, nodes["c"].target).stderr
        join(nodes, "b", via="c")
        before = wait_until(lambda: _both(workers(nodes, "a"), "bc"), PATIENCE_S)

        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: status(nodes, "a").phase is Phase.RUNNING, PATIENCE_S)
        assert workers(nodes, "a") == before
        assert not shown(nodes, "a").groups
        assert status(nodes, "a").restart_count == 0
        end.touch()
        wait_until(lambda: status(nodes, "a").phase is Phase.SUCCEEDED, PATIENCE_S)
        wait_until(lambda: not shown(nodes, "a").hub_of, PATIENCE_S)


def _both(found: dict[str, int], names: str) -> dict[str, int]:
    return found if set(found) == set(names) else {}


def test_what_is_there_at_the_deadline_leaves_also_when_agentd_was_away_then(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with fleet(tmp_path, "a", "b", "c") as nodes:
        start(nodes, end, "abc", fewest=1)
        wait_until(lambda: set(workers(nodes, "a")) == set("abc"), PATIENCE_S)

        # A later drain replaces the deadline of an earlier one.
        drain(nodes, "b", deadline=3600.0)
        with Controller("drain", nodes["b"].target, "--deadline", "1s", root=tmp_path) as following:
            assert following.wait() == 0, following.err
            assert "leaves what is still there at" in following.err
        wait_until(lambda: set(workers(nodes, "a")) == set("ac"), PATIENCE_S)

        drain(nodes, "c", deadline=1.0)
        nodes["c"].kill()
        nodes.again("c")
        wait_until(lambda: set(workers(nodes, "a")) == {"a"}, PATIENCE_S)
        wait_until(lambda: not shown(nodes, "c").groups, PATIENCE_S)
        end.touch()
        wait_until(lambda: status(nodes, "a").phase is Phase.SUCCEEDED, PATIENCE_S)
