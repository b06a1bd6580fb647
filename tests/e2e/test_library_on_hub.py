"""Two agents in two processes on the hub of an agentd that runs nothing restart each other's workers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Node, agentctl, agentd, descendants, is_gone
from tests.support.library_agent import Crowd, crowd
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PAIR = {"last_call_timeout": 1.0}
NEVER_BY_LEASE = {**PAIR, "lease": 300.0}
TOGETHER = {"last_call_timeout": 6.0}
"""For those that may run alone: how long the first waits for the second, whose process has yet to start."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Node]:
    with agentd(tmp_path, "hub") as node:
        yield node


@pytest.fixture
def agents(tmp_path: Path, hub: Node) -> Iterator[Crowd]:
    with crowd(tmp_path / "crowd", hub.target) as made:
        yield made


def status(node: Node, run_id: str = "job") -> dict[str, Any]:
    done = agentctl("status", run_id, "--nodes", node.target, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def states(agents: Crowd) -> dict[str, str]:
    answers = {name: agent.answer() for name, agent in agents.agents.items()}
    for answer in answers.values():
        assert answer["shutdown"], answer
        assert answer["fork_support"] == "0"
        # grpc.aio polls in one thread for the whole process, which is its own to end.
        threads = [name for name in answer["threads"] if "_poll_wrapper" not in name]
        assert threads == ["MainThread"]
    return {name: answer.get("state", answer.get("error", "")) for name, answer in answers.items()}


def test_a_killed_worker_restarts_the_workers_of_both_agents(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, max_restarts=2, options=NEVER_BY_LEASE)
    first = agents.wait_for("a", "b")
    assert len({worker.master for worker in first}) == 1
    os.kill(first[0].pid, signal.SIGKILL)
    second = agents.wait_for("a", "b", restart_count=1, without=first)
    assert all(is_gone(worker.pid) for worker in first)
    os.kill(second[1].pid, signal.SIGKILL)
    third = agents.wait_for("a", "b", restart_count=2, without=second)
    assert [worker.agent for worker in third] == [worker.agent for worker in first], "ranks stay"
    shown = status(hub)
    assert (shown["restart_count"], shown["round"], shown["phase"]) == (2, 3, "PHASE_RUNNING")
    agents.end()
    assert states(agents) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert status(hub)["phase"] == "PHASE_SUCCEEDED"
    assert not list(descendants(hub.pid)), "the daemon runs nothing of it"


def test_a_killed_agent_is_noticed_at_once_and_the_other_goes_on_alone(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, min_nodes=1, options={**NEVER_BY_LEASE, **TOGETHER})
    both = agents.wait_for("a", "b")
    agents.agents["b"].process.kill()
    (alone,) = agents.wait_for("a", without=both)
    assert (alone.rank, alone.world_size) == (0, 1)
    shown = status(hub)
    assert (shown.get("restart_count", 0), shown["membership_changes"]) == (0, 1)
    assert sorted(node["phase"] for node in shown["nodes"]) == ["PHASE_LOST", "PHASE_RUNNING"]
    agents.end()
    assert agents.agents["a"].answer()["state"] == "SUCCEEDED"


def test_a_frozen_agent_is_lost_by_its_lease_and_comes_back_when_it_thaws(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, min_nodes=1, options={**TOGETHER, "lease": 1.5, "heartbeat": 0.3})
    both = agents.wait_for("a", "b")
    frozen = agents.agents["b"].process
    frozen.send_signal(signal.SIGSTOP)
    try:
        wait_until(
            lambda: [(w.agent, w.world_size) for w in agents.workers() if w not in both] == [("a", 1)], 30
        )
    finally:
        frozen.send_signal(signal.SIGCONT)
    agents.wait_for("a", "b", without=both)
    assert status(hub).get("restart_count", 0) == 0
    agents.end()
    assert states(agents) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}


def test_a_hub_that_was_frozen_longer_than_a_lease_restarts_nobody(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, min_nodes=1, options={**TOGETHER, "lease": 1.5, "heartbeat": 0.3})
    both = agents.wait_for("a", "b")
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        time.sleep(4.0)  # how long it is frozen: by then both have given its streams up
    finally:
        os.kill(hub.pid, signal.SIGCONT)
    wait_until(lambda: _all_attached(hub), 60)
    assert agents.workers() == list(both)
    agents.end()
    assert states(agents) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    shown = status(hub)
    assert (shown["round"], shown.get("membership_changes", 0)) == (1, 0)


def test_below_the_minimum_workers_stop_and_a_new_agent_brings_them_back(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, options=NEVER_BY_LEASE)
    both = agents.wait_for("a", "b")
    agents.agents["b"].process.kill()
    wait_until(lambda: status(hub)["phase"] == "PHASE_RENDEZVOUS", 60)
    assert not agents.workers()
    agents.start("c", options=NEVER_BY_LEASE)
    agents.wait_for("a", "c", without=both)
    agents.end()
    assert agents.agents["a"].answer()["state"] == "SUCCEEDED"
    assert agents.agents["c"].answer()["state"] == "SUCCEEDED"


def test_without_budget_both_agents_fail_with_the_same_first_failure(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, options=PAIR)
    workers = agents.wait_for("a", "b")
    agents.end_one(workers[1], 3)
    assert states(agents) == {"a": "FAILED", "b": "FAILED"}
    told = [agent.answer() for agent in agents.agents.values()]
    assert [answer["failures"][0]["pid"] for answer in told] == [workers[1].pid] * 2
    assert [(f["rank"], f["exitcode"]) for f in (answer["failures"][0] for answer in told)] == [(1, 3)] * 2
    assert told[0]["failures"] == told[1]["failures"]
    assert all(is_gone(worker.pid) for worker in workers)
    first = status(hub)["first_failure"]
    assert (int(first["rank"]), int(first["exit_code"]), int(first["pid"])) == (1, 3, workers[1].pid)
    assert Path(first["log_dir"]).is_dir()


def test_agentctl_stop_ends_both_agents_with_its_grace(agents: Crowd, hub: Node) -> None:
    (agents.root / "stubborn").touch()
    for name in ("a", "b"):
        agents.start(name, shutdown_timeout=600.0, options=PAIR)
    workers = agents.wait_for("a", "b")
    done = agentctl("stop", "job", "--grace", "0.3", "--reason", "enough", "--wait", "--nodes", hub.target)
    assert done.returncode == 0, done.stderr
    assert states(agents) == {"a": "STOPPED", "b": "STOPPED"}
    assert {agent.answer()["reason"] for agent in agents.agents.values()} == {"enough"}
    assert all(is_gone(worker.pid) for worker in workers)
    assert status(hub)["phase"] == "PHASE_STOPPED"


@pytest.mark.parametrize("how", ["killed", "upgraded"])
def test_workers_outlive_the_agentd_of_their_hub(tmp_path: Path, how: str) -> None:
    with agentd(tmp_path, "hub") as former, crowd(tmp_path / "crowd", former.target) as agents:
        for name in ("a", "b"):
            agents.start(name, max_restarts=2, options=PAIR)
        first = agents.wait_for("a", "b")
        os.kill(first[0].pid, signal.SIGKILL)
        before = agents.wait_for("a", "b", restart_count=1, without=first)
        former.kill() if how == "killed" else former.stop()
        with agentd(tmp_path, "hub", listen=former.target) as hub:
            wait_until(lambda: _all_attached(hub), 60)
            assert tuple(agents.workers()) == before, "nothing restarts because a hub did"
            shown = status(hub)
            assert (shown["restart_count"], shown["round"]) == (1, 2)
            os.kill(before[1].pid, signal.SIGKILL)
            agents.wait_for("a", "b", restart_count=2, without=before)
            agents.end()
            assert states(agents) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
            assert status(hub)["phase"] == "PHASE_SUCCEEDED"


def _all_attached(hub: Node) -> bool:
    nodes = status(hub).get("nodes", [])
    return len(nodes) == 2 and not any(node.get("detached") for node in nodes)


def test_an_agent_that_gets_sigterm_leaves_and_the_other_goes_on(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, min_nodes=1, options={**NEVER_BY_LEASE, **TOGETHER})
    both = agents.wait_for("a", "b")
    agents.agents["b"].process.terminate()
    assert agents.agents["b"].answer()["error"] == "SignalException"
    agents.wait_for("a", without=both)
    shown = status(hub)
    assert sorted(node["phase"] for node in shown["nodes"]) == ["PHASE_RUNNING", "PHASE_STOPPED"]
    agents.end()
    assert agents.agents["a"].answer()["state"] == "SUCCEEDED"


def test_an_agent_with_other_parameters_is_refused_by_name(agents: Crowd) -> None:
    agents.start("a", options=PAIR)
    wait_until(lambda: "a" in agents.agents and _is_open(agents), 60)
    refused = agents.start("b", max_nodes=3, max_restarts=1, options=PAIR).answer()
    assert refused["error"] == "RendezvousStateError"
    assert "max_restarts" in refused["text"]
    assert "rendezvous.max_members" in refused["text"]
    agents.start("c", options=PAIR)
    agents.wait_for("a", "c")
    agents.end()
    assert agents.agents["a"].answer()["state"] == "SUCCEEDED"


def _is_open(agents: Crowd) -> bool:
    return agentctl("status", "job", "--nodes", agents.endpoint).returncode == 0


def test_people_see_a_run_of_agents_for_what_it_is(agents: Crowd, hub: Node) -> None:
    for name in ("a", "b"):
        agents.start(name, options={**PAIR, "node_id": f"agent-{name}"})
    agents.wait_for("a", "b")
    shown = agentctl("status", "job", "--nodes", hub.target)
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = [line.split() for line in shown.stdout.splitlines() if line.startswith("agent-")]
    assert sorted(row[0] for row in rows) == ["agent-a", "agent-b"]
    assert {row[2] for row in rows} == {"running"}
    assert shown.stdout.count("1 worker, known to their own agent only") == 2
    assert "2 nodes (from 2 to 2)" in shown.stdout
    listed = agentctl("ps", "--nodes", hub.target).stdout.splitlines()[1].split()
    assert listed[:5] == ["job", "running", "1", "0/0", "2"]
    signalled = agentctl("signal", "job", "USR1", "--nodes", hub.target)
    assert signalled.returncode != 0
    assert "no running workers here" in signalled.stderr
    joined = agentctl("join", "job", "--nodes", hub.target, "--via", hub.target)
    assert joined.returncode != 0
    assert "its agents are processes of their own" in joined.stderr
    agents.end()
    assert states(agents) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert agentctl("wait", "job", "--nodes", hub.target).returncode == 0
    ended = agentctl("status", "job", "--nodes", hub.target)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "all 2 members succeeded" in ended.stdout


def test_a_run_id_is_used_again_after_its_run_has_ended(agents: Crowd, hub: Node) -> None:
    incarnations = []
    agents.end()
    for _ in range(2):
        for name in ("a", "b"):
            agents.start(name, options=PAIR)
        assert states(agents) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
        incarnations.append(int(status(hub)["incarnation"]))
    assert incarnations[1] > incarnations[0]
