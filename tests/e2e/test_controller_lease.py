"""`--controller-lease`: a run ends when nobody looks after it any more, and only then."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from agentctl.exits import ExitCode
from agentd_client import AsyncFleet, NoControllerLease, Phase, RunEnded, RunStatus
from agentd_client import Fleet as Clients
from tests.support.fleet import Controller, Fleet, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60.0
UNTIL_TOLD = (
    "import os, pathlib, sys, time",
    "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)",
)


def command(nodes: Fleet, end: Path, *flags: str, run_id: str = "r") -> list[str]:
    script = write_script(end.parent / "wait.py", *UNTIL_TOLD)
    return ["run", "--nodes", nodes.targets(), "--run-id", run_id, *flags, str(script), str(end)]


def status(clients: Clients, run_id: str = "r") -> RunStatus:
    return clients.find(run_id).status().status


def pids(run: RunStatus) -> list[int]:
    groups = [group for node in run.nodes for group in node.groups if group.phase is Phase.RUNNING]
    return [worker.pid for group in groups for worker in group.workers]


def test_a_run_is_stopped_a_lease_after_its_controller_was_killed(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with fleet(tmp_path, "a", "b") as nodes, Clients(nodes.targets().split(",")) as clients:
        leased = command(nodes, end, "--controller-lease", "5s", "--stop-grace", "5")
        with Controller(*leased, root=tmp_path) as run:
            workers = wait_until(lambda: len(nodes.workers("r")) == 2 and pids(status(clients)), PATIENCE_S)
            first = status(clients).controller_lease_until
            # It lives on for longer than its lease, renewed by who follows it.
            wait_until(lambda: status(clients).controller_lease_until > first + 5, PATIENCE_S)
            assert pids(status(clients)) == workers
            assert "unless it is renewed" in agentctl("status", "r", "--nodes", nodes.targets()).stdout
            run.send(signal.SIGKILL)
            run.wait()
        wait_until(lambda: status(clients).finished_at, PATIENCE_S)
        ended = status(clients)
        assert ended.phase is Phase.STOPPED
        assert ended.reason.startswith("its controller lease of 5 s has ended: last renewed at ")
        assert ended.controller_lease_until == 0
        wait_until(lambda: all(is_gone(pid) for pid in workers), PATIENCE_S)
        late = agentctl("renew", "r", "--nodes", nodes.targets())
        assert late.returncode == ExitCode.REFUSED
        assert "has ended" in late.stderr
        assert agentctl("wait", "r", "--nodes", nodes.targets()).returncode == ExitCode.STOPPED


def test_a_hub_that_was_killed_gives_a_whole_lease_and_is_found_again_by_the_keeper(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with fleet(tmp_path, "a", "b") as nodes, Clients(nodes.targets().split(",")) as clients:
        started = agentctl(*command(nodes, end, "--detach", "--controller-lease", "8s"))
        assert started.returncode == 0, started.stderr
        assert "agentctl renew r --keep" in started.stderr
        with Controller("renew", "r", "--keep", "--nodes", nodes["b"].target, root=tmp_path) as keeper:
            workers = wait_until(lambda: len(nodes.workers("r")) == 2 and pids(status(clients)), PATIENCE_S)
            nodes["a"].kill()
            nodes.again("a")
            found = wait_until(lambda: status(clients).controller_lease_until, PATIENCE_S)
            # Soon after the whole lease that it gave itself: the keeper has found it.
            wait_until(lambda: status(clients).controller_lease_until > found + 1, PATIENCE_S)
            assert pids(status(clients)) == workers
            keeper.send(signal.SIGKILL)
            keeper.wait()
        # Without anybody, over another death of the hub: it judges by its own time, from the start on.
        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: status(clients).finished_at, PATIENCE_S)
        ended = status(clients)
        assert ended.phase is Phase.STOPPED
        assert "not renewed since its hub began again at" in ended.reason
        wait_until(lambda: all(is_gone(pid) for pid in workers), PATIENCE_S)


def test_the_client_library_keeps_a_lease_while_its_block_runs(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with fleet(tmp_path, "a") as nodes, Clients([nodes["a"].target]) as clients:
        free = agentctl(*command(nodes, end, "--detach", run_id="free"))
        assert free.returncode == 0, free.stderr
        with pytest.raises(NoControllerLease), clients.find("free").keep_lease():
            pass
        short = agentctl(*command(nodes, end, "--controller-lease", "0.5", run_id="short"))
        assert short.returncode == ExitCode.USAGE
        assert "--controller-lease: 0.5 s is not a time from 1 s" in short.stderr

        leased = command(nodes, end, "--detach", "--controller-lease", "6s")
        assert agentctl(*leased).returncode == 0
        run = clients.find("r")
        with run.keep_lease() as keeper:
            assert keeper.lease is not None
            first = keeper.lease.until
            wait_until(lambda: keeper.lease is not None and keeper.lease.until > first + 6, PATIENCE_S)
            assert keeper.problem is None
        asyncio.run(_kept_to_its_end(nodes["a"].target, end))
        assert run.status().status.phase is Phase.SUCCEEDED
        with pytest.raises(RunEnded):
            run.renew_lease()


async def _kept_to_its_end(target: str, end: Path) -> None:
    async with AsyncFleet([target]) as fleet:
        run = await fleet.find("r")
        async with run.keep_lease() as keeper:
            end.touch()
            assert await keeper.wait(PATIENCE_S)
            assert isinstance(keeper.problem, RunEnded)
