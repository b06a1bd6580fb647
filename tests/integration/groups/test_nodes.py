"""Runs over several nodes of one process, and what becomes of them when an agentd dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.api.errors import RunConflict, StaleIncarnation
from agentd.api.types import Phase, RendezvousSpec, RunSpec, RunStatus, StopRequest, StopScope, WorkerStatus
from agentd.groups.reap import reap
from tests.support.fleet import is_gone
from tests.support.noding import PATIENCE_S, SLEEP, Neighbourhood, Node, run_spec
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio


def own_workers(status: RunStatus, name: str) -> tuple[WorkerStatus, ...]:
    return next(node.groups[0].workers for node in status.nodes if node.node_id == name)


async def run_on(spec: RunSpec, hub: Node, *others: Node) -> RunStatus:
    """As a client does: the hub's node first, then the others at once."""
    status, _ = await hub.run(spec, request_id="r", node_name=hub.name)
    rest = [
        node.run(
            spec,
            request_id="r",
            node_name=node.name,
            incarnation=status.incarnation,
            hub_address=status.hub_address,
        )
        for node in others
    ]
    await asyncio.gather(*rest)
    return status


@contextlib.asynccontextmanager
async def nodes(root: Path, *names: str) -> AsyncIterator[tuple[Neighbourhood, list[Node]]]:
    near = Neighbourhood(root)
    async with contextlib.AsyncExitStack() as stack:
        yield near, [await stack.enter_async_context(near.node(name)) for name in names]


async def test_a_worker_killed_on_one_node_restarts_all_of_them(tmp_path: Path) -> None:
    async with nodes(tmp_path, "a", "b") as (_, (a, b)):
        await run_on(run_spec(nodes=("a", "b"), max_restarts=1), a, b)
        on_a, on_b = await a.runs("job"), await b.runs("job")
        ranks = [worker.rank for worker in (*own_workers(on_a, "a"), *own_workers(on_b, "b"))]
        assert ranks == [0, 1, 2, 3]
        os.kill(own_workers(on_b, "b")[0].pid, signal.SIGKILL)
        await a.runs("job", 2)
        after = await b.runs("job", 2)
        assert all(is_gone(worker.pid) for worker in (*own_workers(on_a, "a"), *own_workers(on_b, "b")))
        assert [worker.rank for worker in own_workers(after, "b")] == [2, 3]
        await b.registry.stop(StopRequest(run_id="job", reason="asked of b"))
        for node in (a, b):
            assert (await node.ends("job")).phase is Phase.STOPPED


async def test_a_node_leaves_and_comes_back_while_the_other_goes_on(tmp_path: Path) -> None:
    spec = run_spec(nodes=("a", "b"), rendezvous=RendezvousSpec(min_members=1, max_members=2))
    async with nodes(tmp_path, "a", "b") as (_, (a, b)):
        status = await run_on(spec, a, b)
        left = await b.runs("job")
        await a.runs("job")
        await b.registry.stop(StopRequest(run_id="job", scope=StopScope.LEAVE, reason="maintenance"))
        assert (await b.ends("job")).phase is Phase.STOPPED
        assert all(is_gone(worker.pid) for worker in own_workers(left, "b"))
        alone = await a.runs("job", 2)
        assert alone.restart_count == 0
        _, created = await b.run(RunSpec(run_id="job", roles=()), join=True, hub_address="a", node_name="b")
        assert created
        assert (await b.runs("job", 3)).incarnation == status.incarnation
        await a.runs("job", 3)
        await a.registry.stop(StopRequest(run_id="job"))
        assert (await b.ends("job")).phase is Phase.STOPPED


async def test_another_run_of_the_same_id_takes_no_node_from_a_live_one(tmp_path: Path) -> None:
    async with nodes(tmp_path, "a", "b", "c") as (_, (a, b, c)):
        await run_on(run_spec(nodes=("a", "b")), a, b)
        before = await b.runs("job")
        await a.runs("job")
        other = run_spec(nodes=("c", "b"))
        with pytest.raises(RunConflict, match="nodes"):
            await run_on(other, c, b)
        with pytest.raises(RunConflict, match="hub_address"):
            await b.run(
                run_spec(nodes=("a", "b")), node_name="b", incarnation=before.incarnation, hub_address="c"
            )
        assert b.registry.status("job").incarnation == before.incarnation
        assert not any(is_gone(worker.pid) for worker in own_workers(before, "b"))
        for node in (a, c):
            await node.registry.stop(StopRequest(run_id="job", grace=0.0))
            await node.ends("job")


async def test_clients_that_begin_at_two_hubs_at_once_end_up_with_the_later_run(tmp_path: Path) -> None:
    spec = run_spec(nodes=("a", "b"))
    async with nodes(tmp_path, "a", "b") as (_, (a, b)):
        earlier, _ = await a.run(spec, request_id="one", node_name="a")
        later, _ = await b.run(spec, request_id="two", node_name="b", incarnation=earlier.incarnation + 1)
        with pytest.raises(StaleIncarnation):
            await b.run(spec, node_name="b", incarnation=earlier.incarnation, hub_address="a")
        await a.run(spec, node_name="a", incarnation=later.incarnation, hub_address=later.hub_address)
        for node in (a, b):
            assert (await node.runs("job")).incarnation == later.incarnation
        assert a.registry.status("job", earlier.incarnation).phase is Phase.STOPPED
        await a.registry.stop(StopRequest(run_id="job", grace=0.0))
        for node in (a, b):
            assert (await node.ends("job")).phase is Phase.STOPPED


async def test_a_hub_off_the_training_nodes_has_no_part_in_the_run(tmp_path: Path) -> None:
    spec = run_spec("pass", nodes=("b", "c"))
    async with nodes(tmp_path, "a", "b", "c") as (_, (a, b, c)):
        status, created = await a.run(spec, request_id="r")
        assert created
        for node in (b, c):
            await node.run(
                spec, request_id="r", node_name=node.name, incarnation=status.incarnation, hub_address="a"
            )
        ends = [await node.ends("job") for node in (a, b, c)]
        assert [end.phase for end in ends] == [Phase.SUCCEEDED] * 3
        assert a.registry.worker_logs("job", 0) == ()
        assert [node.node_id for node in ends[0].nodes] == ["b", "c"]


async def test_a_node_that_shuts_down_leaves_its_run_to_the_others(tmp_path: Path) -> None:
    spec = run_spec(nodes=("a", "b"), rendezvous=RendezvousSpec(min_members=1, max_members=2))
    async with nodes(tmp_path, "a", "b") as (_, (a, b)):
        await run_on(spec, a, b)
        await asyncio.gather(a.runs("job"), b.runs("job"))
        await b.registry.shut_down()
        await a.runs("job", 2)
        await a.registry.stop(StopRequest(run_id="job"))
        await a.ends("job")


async def test_a_node_whose_agentd_begins_again_rejoins_its_run(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    spec = run_spec(nodes=("a", "b"), rendezvous=RendezvousSpec(min_members=1, max_members=2))
    async with near.node("a") as a:
        async with near.node("b") as b:
            await run_on(spec, a, b)
            before = await b.runs("job")
            await a.runs("job")
            # Gone without a word, as after a crash: nothing is stopped, nothing is journalled.
            await _abandon(b)
        await wait_until_async(lambda: all(is_gone(w.pid) for w in own_workers(before, "b")), PATIENCE_S)
        await a.runs("job", 2)
        async with near.node("b") as again:
            back = await again.runs("job", 3)
            assert back.incarnation == before.incarnation
            assert len(own_workers(back, "b")) == 2
            await a.registry.stop(StopRequest(run_id="job"))
            await again.ends("job")


async def test_a_node_that_begins_again_without_its_hub_knows_when_the_run_was_started(
    tmp_path: Path,
) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("a") as a, near.node("b") as b:
        await run_on(run_spec(nodes=("a", "b"), stop_grace=0.0), a, b)
        before = await b.runs("job")
        for node in (a, b):
            await _abandon(node)
    await wait_until_async(lambda: all(is_gone(w.pid) for w in own_workers(before, "b")), PATIENCE_S)
    began_again = time.time()
    async with near.node("b") as again:
        assert again.registry.status("job").started_at < began_again
        await again.registry.stop(StopRequest(run_id="job", grace=0.0))
        await again.ends("job")


async def _abandon(node: Node) -> None:
    await node.registry.close()
    node.registry._live.clear()


AGENTD = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.support.noding import one_node, run_spec

async def main():
    async with one_node(Path(sys.argv[2])) as node:
        await node.run(run_spec(*sys.argv[4:], stop_grace=float(sys.argv[3])))
        status = await node.runs("job")
        group = status.nodes[0].groups[0]
        print(group.host_pid, *[worker.pid for worker in group.workers], flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def agentd_process(
    root: Path, grace: float, *program: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[int]]]:
    """A process of its own with a node that runs two workers; and the pids of host and workers."""
    repo = str(Path(__file__).parents[3])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENTD, repo, str(root), str(grace), *program, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        yield process, [int(word) for word in line.split()]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_when_agentd_is_killed_its_hosts_stop_their_workers(tmp_path: Path) -> None:
    async with agentd_process(tmp_path, grace=5.0) as (agentd, pids):
        assert len(pids) == 3
        agentd.kill()
        await wait_until_async(lambda: all(is_gone(pid) for pid in pids), PATIENCE_S)


async def test_reap_ends_what_a_killed_agentd_left_and_nothing_else(tmp_path: Path) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        async with agentd_process(tmp_path, grace=600.0) as (agentd, pids):
            # A host that is frozen cannot notice that its agentd has died.
            os.kill(pids[0], signal.SIGSTOP)
            agentd.kill()
            await agentd.wait()
            (leftover,) = await asyncio.to_thread(reap, str(tmp_path / "a"), 0.5)
            assert set(leftover.pids) == set(pids)
            assert leftover.stuck == ()
            assert all(is_gone(pid) for pid in pids)
            assert await asyncio.to_thread(reap, str(tmp_path / "a")) == ()
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_reap_ends_what_a_worker_started_without_its_environment(tmp_path: Path) -> None:
    nameless = (
        "import os, subprocess, time",
        "child = subprocess.Popen(['/bin/sh', '-c', 'trap : TERM; while :; do sleep 0.1; done'], env={})",
        f"open(os.path.join({str(tmp_path)!r}, 'pid' + os.environ['RANK']), 'w').write(str(child.pid))",
        "time.sleep(600)",
    )
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    async with agentd_process(tmp_path, 600.0, *nameless) as (agentd, pids):
        await wait_until_async(lambda: all(file.exists() and file.read_text() for file in files))
        os.kill(pids[0], signal.SIGSTOP)
        agentd.kill()
        await agentd.wait()
        await asyncio.to_thread(reap, str(tmp_path / "a"), 0.5)
        assert all(is_gone(pid) for pid in [*pids, *(int(file.read_text()) for file in files)])


async def test_a_new_agentd_ends_what_the_old_one_left_and_runs_it_again(tmp_path: Path) -> None:
    async with agentd_process(tmp_path, grace=600.0) as (agentd, pids):
        os.kill(pids[0], signal.SIGSTOP)
        agentd.kill()
        await agentd.wait()
        async with Neighbourhood(tmp_path).node("a") as node:
            assert all(is_gone(pid) for pid in pids)
            status = await node.runs("job", 2)
            assert {worker.pid for worker in own_workers(status, "a")}.isdisjoint(pids)
            await node.registry.stop(StopRequest(run_id="job", grace=0.0))
            await node.ends("job")


async def test_an_ended_run_is_remembered_by_the_next_agentd(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("a") as node:
        await node.run(run_spec("pass"), request_id="r")
        end = await node.ends("job")
    async with near.node("a") as node:
        status, created = await node.run(run_spec("pass"), request_id="r")
        assert not created
        assert (status.phase, status.incarnation) == (Phase.SUCCEEDED, end.incarnation)
        assert status.revision > end.revision


async def test_reap_of_an_empty_directory_finds_nothing(tmp_path: Path) -> None:
    assert reap(str(tmp_path)) == ()


async def test_logs_of_an_ended_run_are_found_by_the_next_agentd(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("a") as node:
        await node.run(run_spec("print('kept')"))
        await node.ends("job")
        logs = node.registry.worker_logs("job", 0)
    async with near.node("a") as node:
        assert node.registry.worker_logs("job", 0) == logs
        assert [Path(log.directory, "stdout.log").read_text() for log in logs] == ["kept\n"] * 2


async def test_logs_of_a_live_run_outlast_its_agentd(tmp_path: Path) -> None:
    near = Neighbourhood(tmp_path)
    async with near.node("a") as node:
        await node.run(run_spec("print('first')", *SLEEP))
        await node.runs("job")
        logs = node.registry.worker_logs("job", 0)
        await _abandon(node)
    async with near.node("a") as node:
        await node.runs("job", 2)
        assert node.registry.worker_logs("job", 0)[: len(logs)] == logs
        assert {log.round for log in node.registry.worker_logs("job", 0)} == {1, 2}
        await node.registry.stop(StopRequest(run_id="job", grace=0.0))
        await node.ends("job")
        assert {log.round for log in node.registry.worker_logs("job", 0)} == {1, 2}


async def test_logs_of_a_node_that_left_and_joined_again_are_all_there(tmp_path: Path) -> None:
    spec = run_spec(nodes=("a", "b"), rendezvous=RendezvousSpec(min_members=1, max_members=2))
    async with nodes(tmp_path, "a", "b") as (_, (a, b)):
        await run_on(spec, a, b)
        await asyncio.gather(a.runs("job"), b.runs("job"))
        back = RunSpec(run_id="job", roles=())
        for node in (a, b):
            await node.registry.stop(StopRequest(run_id="job", scope=StopScope.LEAVE, grace=0.0))
            await wait_until_async(lambda n=node: not n.registry.group_refs(), PATIENCE_S)  # type: ignore[misc]
            await node.run(back, join=True, hub_address="a", node_name=node.name)
            await node.runs("job", 2)
            rounds = [log.round for log in node.registry.worker_logs("job", 0)]
            assert rounds[:2] == [1, 1]
            assert len(set(rounds)) > 1
        await a.registry.stop(StopRequest(run_id="job", grace=0.0))
        await asyncio.gather(a.ends("job"), b.ends("job"))
