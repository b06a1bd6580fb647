"""A host that is stopped, or hangs: what it is asked wakes it, and a worker's end is not missed for long."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from agentd.api.types import Phase, RunStatus, StopRequest, WorkerState
from agentd.groups import supervisor, witness
from agentd.groups.witness import WorkerWitness
from agentd.host import wire
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
        await node.run(run_spec(roles=(saving,), stop_grace=600.0))
        status = await node.runs("job")
        await wait_until_async(lambda: len(list(tmp_path.glob("saved-ready-*"))) == 2)
        os.kill(host_of(status), signal.SIGSTOP)
        await node.registry.stop(StopRequest(run_id="job"))
        status = await node.ends("job")  # it was woken: nobody waits as long as the grace
        assert status.phase is Phase.STOPPED
        assert {path.name for path in tmp_path.glob("saved-?")} == {"saved-0", "saved-1"}


async def test_the_end_of_a_worker_wakes_its_stopped_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "HUNG_AFTER", 1000)  # however long it takes it to tell
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


def hang_after(monkeypatch: pytest.MonkeyPatch, kind: type[wire.ReportFrame]) -> None:
    """The first host that has told that much hangs, for good: no signal of agentd wakes it."""
    hear, hung = supervisor.Supervisor.on_host_frame, set[int]()

    def hear_and_hang(self: supervisor.Supervisor, frame: wire.ReportFrame) -> None:
        host = self.status.host_pid
        if host in hung:
            return  # said before the signal had stopped it
        if isinstance(frame, kind) and not hung and host:
            hung.add(host)
            os.kill(host, signal.SIGSTOP)
        hear(self, frame)

    monkeypatch.setattr(supervisor, "send_signal", lambda *_: None)
    monkeypatch.setattr(supervisor.Supervisor, "on_host_frame", hear_and_hang)


async def test_a_host_that_tells_of_a_death_and_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang_after(monkeypatch, wire.Exited)
    async with one_node(tmp_path) as node:
        await node.run(run_spec(max_restarts=1, stop_grace=0.5))
        status = await node.runs("job")
        host = host_of(status)
        # Of a death by SIGTERM a host waits for a moment before it calls it a failure.
        os.kill(worker_of(status), signal.SIGTERM)
        status = await node.runs("job", 2)
        assert host_of(status) != host
        assert status.restart_count == 1
        assert status.first_failure is not None
        assert "it hangs" in status.first_failure.message


async def test_a_host_that_tells_of_the_last_success_and_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LEFTOVER_GRACE_S", 0.1)
    hang_after(monkeypatch, wire.Exited)
    leaves_a_child = program(
        "import os, subprocess",
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':",
        "    subprocess.Popen(['sh', '-c', 'trap \\'\\' TERM; sleep 600 & wait; wait'])",
        size=1,
    )
    async with one_node(tmp_path) as node:
        await node.run(run_spec(roles=(leaves_a_child,), max_restarts=1, stop_grace=0.5))
        status = await node.ends("job")
        assert (status.phase, status.restart_count) == (Phase.SUCCEEDED, 1)


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
        watching.told(known.pid, WorkerState.SUCCEEDED)
        watching.told(new.pid, WorkerState.STOPPED)
        await asyncio.sleep(0.2)  # nothing happens: there is nothing to wait on
        assert accused == [new.pid]
    watching.clear()
    assert not watching.workers


@pytest.mark.parametrize(
    ("first", "last", "decides"),
    [
        (WorkerState.SUCCEEDED, WorkerState.SUCCEEDED, True),
        (WorkerState.FAILED, None, True),
        (WorkerState.SUCCEEDED, None, False),
        (WorkerState.SUCCEEDED, WorkerState.STOPPED, False),
        (WorkerState.STOPPED, WorkerState.STOPPED, False),
    ],
)
async def test_a_word_on_the_round_is_due_after_the_ends_that_decide_it(
    monkeypatch: pytest.MonkeyPatch, first: WorkerState, last: WorkerState | None, decides: bool
) -> None:
    monkeypatch.setattr(witness, "STEP_S", 0.005)
    accused: list[int] = []
    watching = WorkerWitness(lambda: None, accused.append)
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        watching.watch([identity for pid in (one.pid, other.pid) if (identity := identify(pid))])
        watching.told(one.pid, first)
        if last is not None:
            watching.told(other.pid, last)
        if decides:
            await wait_until_async(lambda: bool(accused))
        else:
            await asyncio.sleep(0.1)  # nothing happens: there is nothing to wait on
        assert accused == ([witness.VERDICT] if decides else [])
        watching.told(one.pid, WorkerState.FAILED)
        watching.verdict_told()
        await asyncio.sleep(0.1)  # nothing happens: there is nothing to wait on
        assert accused == ([witness.VERDICT] if decides else [])
        watching.clear()
        one.kill()
        other.kill()
