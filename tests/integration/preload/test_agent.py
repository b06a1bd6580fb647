"""Agents of the library fork their workers, too: in a process that adopts nobody and may have threads."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, RunResult, WorkerSpec, WorkerState
from agentd.procs import prctl
from agentd.procs.identity import ProcessIdentity, is_alive
from tests.integration.elastic.rig import Rig

# Each round leaves a child in a session of its own, which is to be ended with it. The first round fails,
# but not before both workers have written: the one that fails would have the other stopped in the middle.
WORKER = """
import json, os, subprocess, sys, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
found = {"preloaded": "decimal" in sys.modules, "parent": os.getppid(), "argv": sys.argv[1:]}
name = f"{os.environ['AGENTD_ROUND']}-{os.environ['LOCAL_RANK']}"
with open(f"{os.environ['FOLDER']}/{name}.part", "w") as file:
    json.dump(found, file)
os.rename(file.name, file.name.replace("part", "json"))
print("said", name)
if name == "1-1":
    while not os.path.exists(f"{os.environ['FOLDER']}/1-0.json"):
        time.sleep(0.01)
    sys.exit(3)
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    (tmp_path / "worker.py").write_text(WORKER)
    yield made
    made.waiter.close()


def agent_of(rig: Rig, *words: str, size: int = 2, **more: Any) -> LocalElasticAgent:
    rig.rendezvous.size, rig.rendezvous.restarts = size, 1
    spec = WorkerSpec(
        role="trainer",
        local_world_size=size,
        rdzv_handler=rig.rendezvous,
        entrypoint=words[0],
        args=words[1:],
        monitor_interval=5.0,
        preload=("decimal",),
        **more,
    )
    return LocalElasticAgent(
        spec,
        RoundLogsSpecs(str(rig.logs)),
        waiter=rig.waiter,
        base_env={**os.environ, "FOLDER": str(rig.folder)},
        token=rig.token,
    )


def said(rig: Rig) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(rig.folder.glob("*.json"))}


def zygotes(agent: LocalElasticAgent) -> frozenset[ProcessIdentity]:
    preloading = agent._preloading
    assert preloading is not None
    assert preloading.keeper is not None
    return preloading.keeper.sessions()


@pytest.mark.parametrize("standby", [False, True])
def test_one_zygote_serves_all_rounds_and_is_gone_before_the_end_is_told(rig: Rig, standby: bool) -> None:
    seen: list[frozenset[ProcessIdentity]] = []
    script = str(rig.folder / "worker.py")
    agent = agent_of(rig, sys.executable, script, "--rank=${local_rank}", standby=standby)
    rig.rendezvous.on_started = lambda _workers: seen.append(zygotes(agent))
    done = rig.rendezvous.on_done
    at_the_end: list[bool] = []

    def on_done(round: int) -> Any:
        at_the_end.extend(is_alive(one) for one in seen[-1])
        return done(round)

    rig.rendezvous.on_done = on_done  # type: ignore[method-assign]
    assert agent.run().state is WorkerState.SUCCEEDED
    assert agent.preload_problem == ""
    workers = said(rig)
    assert sorted(workers) == ["1-0", "1-1", "2-0", "2-1"]
    assert {worker["parent"] for worker in workers.values()} == {os.getpid()}
    assert all(worker["preloaded"] for worker in workers.values())
    assert workers["2-1"]["argv"] == ["--rank=1"]
    assert len(seen[0]) == 1
    assert seen[0] == seen[1]
    assert at_the_end == [False]
    (failure,) = rig.rendezvous.failures[0].failures.values()
    assert failure.exitcode == 3
    assert (rig.logs / "round_2/1/stdout.log").read_text() == "said 2-1\n"
    assert not prctl.is_subreaper()


def test_an_agent_on_a_thread_forks_as_well(rig: Rig) -> None:
    agent = agent_of(rig, sys.executable, str(rig.folder / "worker.py"))
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(agent.run()))
    thread.start()
    thread.join(60)
    assert results[0].state is WorkerState.SUCCEEDED
    assert all(worker["preloaded"] for worker in said(rig).values())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("sh", "-c", "exit 0"), "sh is not called python, so that nothing can be preloaded for it"),
        ((sys.executable, "${local_rank}.py"), "each local rank runs another program, so that"),
    ],
)
def test_a_program_that_cannot_be_forked_runs_all_the_same(
    rig: Rig, words: tuple[str, ...], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    (rig.folder / "0.py").touch()
    agent = agent_of(rig, *(word.replace("${", f"{rig.folder}/${{") for word in words), size=1)
    assert agent.run().state is WorkerState.SUCCEEDED
    assert agent.preload_problem.startswith(problem)
    assert problem in caplog.text


def test_functions_are_not_forked_from_a_zygote(rig: Rig) -> None:
    agent = agent_of(rig, "x", size=1)
    agent.get_worker_group().spec.entrypoint = print
    preloading = agent._preloading
    assert preloading is not None
    preloading.start(rig.waiter)
    preloading.started()
    assert preloading.keeper is None
    assert agent.preload_problem.startswith("the entrypoint is a function")
