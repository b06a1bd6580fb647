"""A host that is stopped, or hangs: what it is asked wakes it, and a worker's end is not missed for long."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from agentd.api.types import Phase, RunStatus, StopRequest
from agentd.groups import supervisor, witness
from agentd.groups.witness import WorkerWitness
from agentd.procs.identity import identify
from tests.support.noding import one_node, program, run_spec
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

SAVES = (
    "import pathlib, signal, sys, time, os",
    "def save(*_): pathlib.Path(os.environ['SAVED'] + os.environ['RANK']).touch(); sys.exit(0)",
    "signal.signal(signal.SIGTERM, save)",
    "pathlib.Path(os.environ['SAVED'] + 'ready-' + os.environ['RANK']).touch()",
    "while True: time.sleep(1)",
)


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "STEP_S", 0.2)


def host_of(status: RunStatus) -> int:
    pid = status.nodes[0].groups[0].host_pid
    assert pid > 1, "there is no host now"
    return pid


def worker_of(status: RunStatus) -> int:
    return status.nodes[0].groups[0].workers[0].pid


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


async def test_a_stop_wakes_a_stopped_host_and_workers_have_their_grace(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        saving = program(*SAVES, env={"SAVED": str(tmp_path / "saved-")})
        await node.run(run_spec(roles=(saving,)))
        status = await node.runs("job")
        await wait_until_async(lambda: len(list(tmp_path.glob("saved-ready-*"))) == 2)
        os.kill(host_of(status), signal.SIGSTOP)
        began = time.monotonic()
        await node.registry.stop(StopRequest(run_id="job"))
        status = await node.ends("job")
        assert status.phase is Phase.STOPPED
        assert time.monotonic() - began < 5.0, "it was woken, not waited for"
        assert {path.name for path in tmp_path.glob("saved-?")} == {"saved-0", "saved-1"}


async def test_the_end_of_a_worker_wakes_its_stopped_host(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec(max_restarts=1))
        status = await node.runs("job")
        host = host_of(status)
        os.kill(host, signal.SIGSTOP)
        os.kill(worker_of(status), signal.SIGKILL)
        status = await node.runs("job", 2)
        assert host_of(status) == host
        assert not is_stopped(host)
        assert status.restart_count == 1


async def test_a_host_that_hangs_is_replaced_when_a_worker_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What hangs is not woken by a signal.
    monkeypatch.setattr(supervisor, "send_signal", lambda *_: None)
    async with one_node(tmp_path) as node:
        await node.run(run_spec(max_restarts=1))
        status = await node.runs("job")
        host = host_of(status)
        os.kill(host, signal.SIGSTOP)
        os.kill(worker_of(status), signal.SIGKILL)
        status = await node.runs("job", 2)
        assert host_of(status) != host
        assert status.restart_count == 1


async def test_a_stopped_host_whose_workers_run_is_left_alone(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec(max_restarts=1))
        status = await node.runs("job")
        host = host_of(status)
        os.kill(host, signal.SIGSTOP)
        await asyncio.sleep(
            (witness.HUNG_AFTER + 2) * witness.STEP_S
        )  # nothing happens: there is nothing to wait on
        assert is_stopped(host)
        assert node.registry.status("job").round == 1
        os.kill(host, signal.SIGCONT)


async def test_only_ends_that_are_still_to_be_told_of_accuse_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "STEP_S", 0.01)
    accused: list[int] = []
    watching = WorkerWitness(lambda: None, accused.append)
    with subprocess.Popen(["true"]) as known, subprocess.Popen(["true"]) as new:
        # Unreaped until the end of the block, as workers are until their host has swept.
        both = [identity for pid in (known.pid, new.pid) if (identity := identify(pid))]
        watching.watch(both, ended={known.pid})
        await wait_until_async(lambda: bool(accused))
        assert accused == [new.pid]
        watching.watch(both)
        watching.told(known.pid)
        watching.told(new.pid)
        await asyncio.sleep(0.2)  # nothing happens: there is nothing to wait on
        assert accused == [new.pid]
    watching.clear()
    assert not watching.workers
