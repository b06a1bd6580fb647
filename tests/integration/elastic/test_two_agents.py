"""Agents of one run that meet in a store, as torch's do: ranks, barrier, and events while they wait."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, RunResult, WorkerSpec, WorkerState
from agentd.elastic.utils.store import StoreTimeout
from tests.integration.elastic.rig import PlainRendezvous, a_store


def _agent(folder: Path, rendezvous: PlainRendezvous, script: str, size: int) -> LocalElasticAgent:
    spec = WorkerSpec("w", size, rendezvous, entrypoint="sh", args=("-c", script), max_restarts=0)
    logs = RoundLogsSpecs(str(folder / str(rendezvous.rank)))
    return LocalElasticAgent(spec, logs, shutdown_timeout=10, exit_barrier_timeout=20)


def _run_all(agents: list[LocalElasticAgent]) -> list[RunResult]:
    results: dict[int, RunResult] = {}

    def run(index: int) -> None:
        results[index] = agents[index].run()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(agents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(agents))]


def test_agents_of_unequal_size_agree_on_the_ranks_and_leave_together(tmp_path: Path) -> None:
    stores = [a_store()]
    sizes = [1, 3, 2]
    members = [PlainRendezvous(rank, 3, stores) for rank in range(3)]
    agents = [
        _agent(tmp_path, member, "echo $RANK/$WORLD_SIZE", size)
        for member, size in zip(members, sizes, strict=True)
    ]
    results = _run_all(agents)
    assert [sorted(result.return_values) for result in results] == [[0], [1, 2, 3], [4, 5]]
    assert (tmp_path / "1" / "round_1" / "2" / "stdout.log").read_text() == "3/6\n"
    assert stores[0].get("torchelastic/agent/terminal_state/num_members") == b"3"
    assert stores[0].check(["torchelastic/agent/terminal_state/last_member"])


def test_an_agent_whose_peer_never_comes_to_the_barrier_succeeds_all_the_same(tmp_path: Path) -> None:
    stores = [a_store()]
    stores[0].set("torchelastic/role_info/1", b'{"role": "w", "rank": 1, "local_world_size": 1}')
    spec = WorkerSpec("w", 1, PlainRendezvous(0, 2, stores), entrypoint="true", max_restarts=0)
    agent = LocalElasticAgent(spec, RoundLogsSpecs(str(tmp_path)), exit_barrier_timeout=0.2)
    assert agent.run().state is WorkerState.SUCCEEDED


def test_ranks_that_are_never_told_are_a_timeout_that_names_the_key(tmp_path: Path) -> None:
    rendezvous = PlainRendezvous(1, 2, [a_store(timeout_s=0.1)])
    with pytest.raises(StoreTimeout, match="torchelastic/assigned_ranks/1"):
        _agent(tmp_path, rendezvous, "exit 0", 1).run()


def test_a_stop_ends_the_wait_for_ranks(tmp_path: Path) -> None:
    agent = _agent(tmp_path, PlainRendezvous(1, 2, [a_store(timeout_s=600)]), "exit 0", 1)
    stopper = threading.Timer(0.1, agent.request_stop, kwargs={"signum": signal.SIGINT})
    stopper.start()
    assert agent.run().state is WorkerState.STOPPED
    stopper.join()


def test_identical_agents_do_not_touch_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_WORKER_IDENTICAL", "1")
    stores = [a_store()]
    # It fails, so that it does not come to the exit barrier.
    agent = _agent(tmp_path, PlainRendezvous(2, 3, stores), "echo $RANK/$WORLD_SIZE; exit 1", 2)
    assert set(agent.run().failures) <= {4, 5}
    assert (tmp_path / "2" / "round_1" / "0" / "stdout.log").read_text() == "4/6\n"
    assert stores[0].num_keys() == 0
