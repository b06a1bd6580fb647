"""One node's runs, from the call to the process table: real hub, hosts and workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.api.errors import (
    AgentdEnding,
    DeviceInUse,
    InvalidSpec,
    JournalUnavailable,
    LimitExceeded,
    NotRunning,
    ProgramUnusable,
    RunConflict,
    RunEnded,
    RunNotFound,
    StaleIncarnation,
)
from agentd.api.types import (
    Phase,
    RendezvousSpec,
    RunSpec,
    RunStatus,
    StopRequest,
    StopScope,
    StreamEnd,
    WorkerState,
    WorkerStatus,
)
from agentd.groups import intake, journal, supervisor
from tests.support.fleet import is_gone
from tests.support.noding import PATIENCE_S, Node, one_node, program, run_spec
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio


def workers(status: RunStatus) -> list[WorkerStatus]:
    return [worker for node in status.nodes for group in node.groups for worker in group.workers]


def host_pid(status: RunStatus) -> int:
    return status.nodes[0].groups[0].host_pid


async def stopped(node: Node, run_id: str = "job", **changes: object) -> RunStatus:
    await node.registry.stop(StopRequest(run_id=run_id, **changes))  # type: ignore[arg-type]
    return await node.ends(run_id)


async def test_a_run_succeeds_and_its_status_tells_the_whole_story(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        status, created = await node.run(run_spec("print('hello')", labels={"team": "x"}))
        assert created
        assert status.phase in (Phase.PENDING, Phase.RENDEZVOUS)
        end = await node.ends("job")
    assert (end.phase, end.round, end.restart_count, end.labels) == (Phase.SUCCEEDED, 1, 0, {"team": "x"})
    assert end.from_hub
    assert end.finished_at >= end.started_at > 0
    assert [(w.rank, w.state, w.exit_code) for w in workers(end)] == [
        (0, WorkerState.SUCCEEDED, 0),
        (1, WorkerState.SUCCEEDED, 0),
    ]
    for worker in workers(end):
        assert Path(worker.log_dir, "stdout.log").read_text() == "hello\n"
        assert worker.log_dir.startswith(str(node.state_dir / "runs" / "job" / str(end.incarnation)))


async def test_a_failure_ends_the_run_with_its_first_cause(tmp_path: Path) -> None:
    fail = ("import os, sys, time", "if os.environ['RANK'] == '1': sys.exit('no data')", "time.sleep(600)")
    async with one_node(tmp_path) as node:
        await node.run(run_spec(*fail))
        end = await node.ends("job")
    assert end.phase is Phase.FAILED
    first = end.first_failure
    assert first is not None
    assert (first.node_id, first.rank, first.exit_code, first.stderr_tail) == ("a", 1, 1, "no data\n")
    assert [worker.state for worker in workers(end)] == [WorkerState.STOPPED, WorkerState.FAILED]


async def test_a_killed_worker_restarts_the_group_and_is_counted(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec(max_restarts=1))
        before = await node.runs("job")
        os.kill(workers(before)[0].pid, signal.SIGKILL)
        after = await node.runs("job", 2)
        assert {w.pid for w in workers(before)}.isdisjoint(w.pid for w in workers(after))
        assert all(is_gone(worker.pid) for worker in workers(before))
        view = await node.reaches("job", lambda s: s.restart_count == 1 and s.phase is Phase.RUNNING)
        assert view.round == 2
        os.kill(workers(after)[1].pid, signal.SIGKILL)
        end = await node.ends("job")
    assert (end.phase, end.restart_count) == (Phase.FAILED, 1)
    assert end.first_failure is not None
    assert end.first_failure.signal == signal.SIGKILL


STUBBORN = (
    "import os, signal, subprocess, time",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "child = subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "open(os.environ['OUT'] + os.environ['RANK'], 'w').write(str(child.pid))",
    "print('ready', flush=True)",
    "time.sleep(600)",
)


async def test_stop_keeps_the_grace_then_leaves_nothing(tmp_path: Path) -> None:
    spec = run_spec(roles=(program(*STUBBORN, env={"OUT": f"{tmp_path}/pid"}),), stop_grace=1.0)
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    async with one_node(tmp_path) as node:
        await node.run(spec)
        status = await node.runs("job")
        await wait_until_async(lambda: all(path.exists() and path.read_text() for path in pids))
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = await stopped(node, reason="enough")
        assert loop.time() - began >= 1.0
    assert (end.phase, end.reason) == (Phase.STOPPED, "enough")
    assert end.first_failure is None
    assert all(is_gone(worker.pid) for worker in workers(status))
    assert all(is_gone(int(path.read_text())) for path in pids)


async def test_a_second_stop_shortens_the_grace(tmp_path: Path) -> None:
    spec = run_spec(roles=(program(*STUBBORN, env={"OUT": f"{tmp_path}/pid"}),), stop_grace=600.0)
    async with one_node(tmp_path) as node:
        await node.run(spec)
        await node.runs("job")
        await wait_until_async((tmp_path / "pid1").exists)
        await node.registry.stop(StopRequest(run_id="job"))
        await node.reaches("job", lambda status: status.phase is Phase.STOPPING)
        assert (await stopped(node, grace=0.0)).phase is Phase.STOPPED


@pytest.mark.parametrize("moment", ["at once", "rendezvous", "running", "restarting"])
async def test_stop_in_every_phase_ends_stopped_and_leaves_no_process(tmp_path: Path, moment: str) -> None:
    spec = run_spec(max_restarts=5)
    if moment == "rendezvous":
        spec = replace(spec, rendezvous=RendezvousSpec(min_members=2, max_members=2))
    async with one_node(tmp_path) as node:
        await node.run(spec)
        if moment == "rendezvous":
            await node.reaches("job", lambda s: s.nodes and s.nodes[0].phase is Phase.RENDEZVOUS)
        elif moment == "running":
            await node.runs("job")
        elif moment == "restarting":
            os.kill(workers(await node.runs("job"))[0].pid, signal.SIGKILL)
            await node.reaches("job", lambda s: s.nodes[0].groups[0].phase is not Phase.RUNNING)
        end = await stopped(node)
        assert end.phase is Phase.STOPPED
        assert node.registry.group_refs() == ()
        assert await node.registry.stop(StopRequest(run_id="job")) == end


async def test_stop_of_an_unknown_run_or_incarnation_is_named_and_touches_nothing(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        with pytest.raises(RunNotFound):
            await node.registry.stop(StopRequest(run_id="job"))
        status, _ = await node.run(run_spec())
        with pytest.raises(RunNotFound):
            await node.registry.stop(StopRequest(run_id="job", incarnation=status.incarnation + 1))
        await node.runs("job")


async def test_a_killed_host_is_a_counted_failure_and_the_group_is_hosted_again(tmp_path: Path) -> None:
    spec = run_spec(roles=(program(*STUBBORN, env={"OUT": f"{tmp_path}/pid"}),), max_restarts=1)
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    async with one_node(tmp_path) as node:
        await node.run(spec)
        before = await node.runs("job")
        await wait_until_async(lambda: all(path.exists() and path.read_text() for path in pids))
        grandchildren = [int(path.read_text()) for path in pids]
        os.kill(host_pid(before), signal.SIGKILL)
        after = await node.runs("job", 2)
        assert host_pid(after) != host_pid(before)
        assert all(is_gone(pid) for pid in [*grandchildren, *(worker.pid for worker in workers(before))])
        os.kill(host_pid(after), signal.SIGKILL)
        end = await node.ends("job")
    assert (end.phase, end.restart_count) == (Phase.FAILED, 1)
    assert "the host was lost: SIGKILL" in end.reason


NAMELESS = (
    "import os, subprocess, time",
    "child = subprocess.Popen(['/bin/sh', '-c', 'trap : TERM; while :; do sleep 0.1; done'], env={})",
    "open(os.environ['OUT'] + os.environ['RANK'], 'w').write(str(child.pid))",
    "time.sleep(600)",
)
"""What it starts has no token, only the worker's session."""


async def test_a_killed_host_leaves_nothing_of_its_workers_sessions(tmp_path: Path) -> None:
    spec = run_spec(roles=(program(*NAMELESS, env={"OUT": f"{tmp_path}/pid"}),))
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    async with one_node(tmp_path) as node:
        await node.run(spec)
        before = await node.runs("job")
        await wait_until_async(lambda: all(path.exists() and path.read_text() for path in pids))
        os.kill(host_pid(before), signal.SIGKILL)
        assert (await node.ends("job")).phase is Phase.FAILED
        assert all(is_gone(int(path.read_text())) for path in pids)


async def test_a_host_killed_before_the_round_formed_costs_a_restart_too(tmp_path: Path) -> None:
    spec = run_spec(rendezvous=RendezvousSpec(min_members=2, max_members=2), max_restarts=1)
    async with one_node(tmp_path) as node:
        await node.run(spec)

        def offered(status: RunStatus) -> bool:
            return bool(status.nodes) and status.nodes[0].phase is Phase.RENDEZVOUS

        first = await node.reaches("job", offered)
        os.kill(host_pid(first), signal.SIGKILL)
        again = await node.reaches("job", lambda s: offered(s) and host_pid(s) not in (0, host_pid(first)))
        assert again.phase is Phase.RENDEZVOUS


async def test_two_roles_on_a_node_are_two_groups_of_one_round(tmp_path: Path) -> None:
    show = (
        "import json, os, sys",
        "names = 'RANK ROLE_NAME ROLE_RANK ROLE_WORLD_SIZE WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE'.split()",
        "json.dump({name: os.environ[name] for name in names}, sys.stdout)",
    )
    roles = (program(*show, role="train", size=2), program(*show, role="log", size=1))
    async with one_node(tmp_path) as node:
        await node.run(run_spec(roles=roles))
        end = await node.ends("job")
        assert end.phase is Phase.SUCCEEDED
        logs = node.registry.worker_logs("job", 0)
        seen = [json.loads(Path(log.directory, "stdout.log").read_text()) for log in logs]
    assert sorted((one["RANK"], one["ROLE_NAME"], one["ROLE_RANK"], one["GROUP_RANK"]) for one in seen) == [
        ("0", "train", "0", "0"),
        ("1", "train", "1", "0"),
        ("2", "log", "0", "1"),
    ]
    assert {(one["WORLD_SIZE"], one["GROUP_WORLD_SIZE"]) for one in seen} == {("3", "2")}


async def test_a_done_role_is_run_again_when_another_fails(tmp_path: Path) -> None:
    quick = program("import os", "print(os.environ['AGENTD_ROUND'])", role="quick", size=1)
    slow = program("import time", "time.sleep(600)", role="slow", size=1)
    async with one_node(tmp_path) as node:
        await node.run(run_spec(roles=(quick, slow), max_restarts=1))

        def quick_is_done(status: RunStatus, round_: int) -> bool:
            groups = {group.role: group for node in status.nodes for group in node.groups}
            quick_group, slow_group = groups.get("quick"), groups.get("slow")
            done = quick_group is not None and quick_group.phase is Phase.DONE
            running = slow_group is not None and slow_group.phase is Phase.RUNNING
            return done and running and slow_group is not None and slow_group.round == round_

        status = await node.reaches("job", lambda s: quick_is_done(s, 1))
        slow_pid = next(worker.pid for worker in workers(status) if worker.role == "slow")
        os.kill(slow_pid, signal.SIGKILL)
        await node.reaches("job", lambda s: quick_is_done(s, 2))
        rounds = sorted(
            Path(log.directory, "stdout.log").read_text()
            for log in node.registry.worker_logs("job", 0)
            if log.role == "quick"
        )
    assert rounds == ["1\n", "2\n"]


async def test_signals_reach_running_workers_only(tmp_path: Path) -> None:
    catch = (
        "import signal, sys",
        "signal.signal(signal.SIGUSR1, lambda *a: sys.exit(0))",
        "print('set', flush=True)",
        "while True: signal.pause()",
    )
    async with one_node(tmp_path) as node:
        await node.run(run_spec(*catch))
        with pytest.raises(NotRunning):
            await node.registry.signal("job", 0, signal.SIGUSR1, ())
        status = await node.runs("job")
        outs = [Path(worker.log_dir, "stdout.log") for worker in workers(status)]
        await wait_until_async(lambda: all(out.read_text() for out in outs))
        with pytest.raises(InvalidSpec):
            await node.registry.signal("job", 0, 65, ())
        assert await node.registry.signal("job", 0, signal.SIGUSR1, (1, 99)) == (1,)
        await node.reaches("job", lambda s: workers(s)[1].state is WorkerState.SUCCEEDED)
        assert await node.registry.signal("job", 0, signal.SIGUSR1, ()) == (0,)
        assert (await node.ends("job")).phase is Phase.SUCCEEDED
        with pytest.raises(RunEnded):
            await node.registry.signal("job", 0, signal.SIGUSR1, ())


async def test_a_repeated_run_is_one_run_and_another_spec_is_refused_by_name(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        first, created = await node.run(run_spec(), request_id="r1")
        again, created_again = await node.run(run_spec(), request_id="r1")
        other, created_other = await node.run(run_spec(), request_id="r2")
        assert (created, created_again, created_other) == (True, False, False)
        assert first.incarnation == again.incarnation == other.incarnation
        with pytest.raises(RunConflict) as refusal:
            await node.run(run_spec(max_restarts=3))
        assert refusal.value.facts["fields"] == "max_restarts"
        end = await stopped(node)
        same, created = await node.run(run_spec(), request_id="r1")
        assert (same, created) == (end, False)
        new, created = await node.run(run_spec(), request_id="r3")
        assert created
        assert new.incarnation > end.incarnation
        with pytest.raises(StaleIncarnation):
            await node.run(run_spec(), incarnation=end.incarnation, hub_address="a")


async def test_a_request_repeated_after_a_newer_run_gets_its_own_end(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec("pass"), request_id="one")
        first = await node.ends("job")
        await node.run(run_spec(), request_id="two")
        await node.runs("job")
        status, created = await node.run(run_spec("pass"), request_id="one")
        assert (status.incarnation, status.phase, created) == (first.incarnation, Phase.SUCCEEDED, False)
        await stopped(node, grace=0.0)
        status, created = await node.run(run_spec("pass"), request_id="one")
        assert (status.incarnation, created) == (first.incarnation, False)


async def test_raced_runs_make_one_incarnation(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        answers = await asyncio.gather(*(node.run(run_spec()) for _ in range(8)))
        assert len({status.incarnation for status, _ in answers}) == 1
        assert [created for _, created in answers].count(True) == 1
        assert len(node.registry.runs(include_ended=True)) == 1


async def test_a_device_is_not_shared_and_free_again_after_the_end(tmp_path: Path) -> None:
    def on_devices(run_id: str, *devices: int) -> RunSpec:
        return run_spec(run_id=run_id, roles=(program("import time", "time.sleep(600)", devices=devices),))

    async with one_node(tmp_path) as node:
        await node.run(on_devices("one", 0, 1))
        with pytest.raises(DeviceInUse):
            await node.run(on_devices("two", 1, 2))
        await node.run(on_devices("three", 2))
        await stopped(node, "one")
        _, created = await node.run(on_devices("two", 1, 3))
        assert created


BAD = {
    "10,000 workers": (run_spec(roles=(program("pass", size=10_000),)), InvalidSpec),
    "path as run id": (run_spec(run_id="../x"), InvalidSpec),
    "10 MiB of arguments": (run_spec("x" * 10_485_760), LimitExceeded),
    "no directory": (
        run_spec(
            roles=(
                replace(
                    program("pass"),
                    command=replace(program("pass").command, working_directory="/no/such/directory"),
                ),
            )
        ),
        ProgramUnusable,
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_refused_run_leaves_nothing(tmp_path: Path, case: str) -> None:
    spec, error = BAD[case]
    async with one_node(tmp_path) as node:
        with pytest.raises(error):
            await node.run(spec)
        assert node.registry.runs(include_ended=True) == []
        assert not (node.state_dir / "runs").exists()
        _, created = await node.run(run_spec("pass"))
        assert created
        assert (await node.ends("job")).phase is Phase.SUCCEEDED


async def test_a_watcher_sees_the_end_and_the_stream_closes(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec("pass"))
        seen = [event async for event in node.registry.watch("job", 0, 0)]
    statuses = [event for event in seen if isinstance(event, RunStatus)]
    assert statuses[-1].phase is Phase.SUCCEEDED
    assert isinstance(seen[-1], StreamEnd)
    revisions = [status.revision for status in statuses]
    assert revisions == sorted(set(revisions))


async def test_health_follows_the_workers(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        changes: list[str] = []
        node.registry.on_change(changes.append)
        with pytest.raises(RunNotFound):
            node.registry.health("job", None)
        await node.run(run_spec())
        assert not node.registry.health("job", None)
        await node.runs("job")
        assert node.registry.health("job", None)
        assert node.registry.health("job", "default")
        with pytest.raises(RunNotFound):
            node.registry.health("job", "other")
        await stopped(node)
        assert not node.registry.health("job", None)
        assert not node.registry.health("job", "default")
    assert set(changes) == {"job"}


async def test_folders_are_private_and_specs_are_left_there(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    async with one_node(tmp_path) as node:
        await node.run(run_spec(roles=(program("print('x')", log_dir=str(logs)),)))
        end = await node.ends("job")
    role_dir = node.state_dir / "runs" / "job" / str(end.incarnation) / "default"
    assert role_dir.stat().st_mode & 0o777 == 0o700
    assert (role_dir / "spec.json").stat().st_mode & 0o777 == 0o600
    assert not (role_dir / "round.json").exists()
    out = logs / "job" / str(end.incarnation) / "default" / "round_1" / "0" / "stdout.log"
    assert out.read_text() == "x\n"


async def test_drain_refuses_new_runs_and_stops_those_there_are(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec())
        status = await node.runs("job")
        await node.registry.shut_down()
        assert all(is_gone(worker.pid) for worker in workers(status))
        assert (await node.ends("job")).phase is Phase.STOPPED
        with pytest.raises(AgentdEnding):
            await node.run(run_spec(run_id="late"))
        assert not node.registry.accepting


async def test_leaving_the_only_node_lets_the_run_wait_for_another(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec())
        status = await node.runs("job")
        await node.registry.stop(StopRequest(run_id="job", scope=StopScope.LEAVE))
        left = await node.reaches("job", lambda s: s.phase is Phase.RENDEZVOUS)
        await wait_until_async(lambda: all(is_gone(worker.pid) for worker in workers(status)))
        assert left.membership_changes == 1
        _, created = await node.run(run_spec(), join=True)
        assert created
        await node.runs("job", 2)


async def test_many_runs_at_once_and_nothing_is_kept_of_them(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        names = [f"job-{number}" for number in range(6)]
        for name in names:
            await node.run(run_spec("pass", run_id=name))
        ends = await asyncio.gather(*(node.ends(name) for name in names))
        assert {end.phase for end in ends} == {Phase.SUCCEEDED}
        assert node.registry.group_refs() == ()
        assert node.hub.live_runs == ()


async def test_a_journal_that_hangs_refuses_new_runs_and_holds_up_no_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec(max_restarts=3))
        status = await node.runs("job")
        monkeypatch.setattr(journal, "PATIENCE", 0.3)
        blocker = sqlite3.connect(node.state_dir / "agentd.db", isolation_level=None)
        with contextlib.closing(blocker):
            blocker.execute("BEGIN IMMEDIATE")
            os.kill(workers(status)[0].pid, signal.SIGKILL)
            await node.runs("job", 2)
            assert node.registry.conditions == (journal.BEHIND,)
            assert not node.registry.accepting
            with pytest.raises(JournalUnavailable):
                await node.run(run_spec(run_id="late"))
            blocker.execute("COMMIT")
        monkeypatch.setattr(journal, "PATIENCE", PATIENCE_S)
        await wait_until_async(lambda: not node.registry.conditions)
        with pytest.raises(RunNotFound):
            node.registry.status("late")
        _, created = await node.run(run_spec("pass", run_id="late"))
        assert created
        assert (await node.ends("late")).phase is Phase.SUCCEEDED


async def test_a_disk_that_does_not_answer_refuses_the_run_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(intake, "ADMISSION_S", 0.2)
    monkeypatch.setattr(intake, "plan_node", lambda *_: answer.wait(PATIENCE_S))
    async with one_node(tmp_path) as node:
        try:
            with pytest.raises(ProgramUnusable, match="did not answer"):
                await node.run(run_spec())
            assert node.registry.runs(include_ended=True) == []
        finally:
            answer.set()


async def test_a_fault_of_the_supervisor_leaves_no_worker_unwatched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    async with one_node(tmp_path) as node:
        # The hub waits for a word that never comes: the stop's grace, a kill's time and a lease.
        await node.run(run_spec(stop_grace=0.1, rendezvous=RendezvousSpec(heartbeat=0.2, lease=1.0)))
        status = await node.runs("job")
        monkeypatch.setattr(supervisor, "step", fails)
        os.kill(workers(status)[0].pid, signal.SIGKILL)
        lost = await node.reaches("job", lambda s: s.nodes[0].groups[0].phase is Phase.LOST)
        assert "a fault of ours" in lost.nodes[0].groups[0].reason
        await wait_until_async(lambda: all(is_gone(worker.pid) for worker in workers(status)))
        monkeypatch.undo()
        assert (await stopped(node)).phase is Phase.STOPPED


async def test_an_incarnation_that_no_hub_gives_is_refused_and_the_id_stays_free(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        for made_up in (1 << 53, 1 << 63, (1 << 64) - 1):
            with pytest.raises(InvalidSpec, match="incarnation"):
                await node.run(run_spec(), incarnation=made_up, hub_address="127.0.0.1:1")
        await node.run(run_spec("pass"))
        assert (await node.ends("job")).phase is Phase.SUCCEEDED
