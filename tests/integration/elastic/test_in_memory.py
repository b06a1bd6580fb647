"""Agents of one process on the in-memory rendezvous: what happens to one concerns all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, RunResult, WorkerSpec, WorkerState
from agentd.elastic.rendezvous import (
    AssignedRendezvousInfo,
    RendezvousClosedError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousTimeoutError,
)
from agentd.elastic.rendezvous.in_memory import InMemoryRendezvous
from agentd.elastic.rendezvous.meeting import Beat
from tests.support.waiting import wait_until

PATIENCE_S = 40.0


class Agents:
    """Agents in threads, by name, and how each ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_name: dict[str, LocalElasticAgent] = {}
        self.results: dict[str, RunResult | BaseException] = {}
        self._threads: list[threading.Thread] = []

    def start(
        self, name: str, meeting: InMemoryRendezvous, script: str, size: int = 1, restarts: int = 3
    ) -> None:
        spec = WorkerSpec(
            "w",
            size,
            meeting.handler(),
            entrypoint="sh",
            args=("-c", f'cd "{self.folder}"; {script}'),
            max_restarts=restarts,
            monitor_interval=30.0,  # all that happens must wake the agent
        )
        logs = RoundLogsSpecs(str(self.folder / "logs" / name))
        self.by_name[name] = LocalElasticAgent(spec, logs, shutdown_timeout=PATIENCE_S)
        thread = threading.Thread(target=self._run, args=(name,))
        self._threads.append(thread)
        thread.start()

    def _run(self, name: str) -> None:
        try:
            self.results[name] = self.by_name[name].run()
        except Exception as error:
            self.results[name] = error

    def ended(self, *names: str) -> dict[str, WorkerState]:
        wait_until(lambda: set(names) <= self.results.keys(), PATIENCE_S, what=f"the end of {names}")
        return {name: self.result(name).state for name in names}

    def result(self, name: str) -> RunResult:
        result = self.results[name]
        if isinstance(result, BaseException):
            raise result
        return result

    def out(self, name: str, round_: int, local_rank: int = 0) -> str:
        file = self.folder / "logs" / name / f"round_{round_}" / str(local_rank) / "stdout.log"
        return file.read_text() if file.exists() else ""

    def says(self, name: str, round_: int, text: str) -> None:
        wait_until(lambda: text in self.out(name, round_), PATIENCE_S, what=f"{text!r} of {name}")

    def close(self) -> None:
        for agent in self.by_name.values():
            agent.request_stop(0)
        for thread in self._threads:
            thread.join(PATIENCE_S)


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    agents = Agents(tmp_path)
    yield agents
    agents.close()


TELL = 'echo "$RANK/$WORLD_SIZE restart $TORCHELASTIC_RESTART_COUNT of $TORCHELASTIC_MAX_RESTARTS"'


def test_one_failure_restarts_all_and_is_counted_once(agents: Agents) -> None:
    meeting = InMemoryRendezvous("run", 3)
    first_fails = "[ $TORCHELASTIC_RESTART_COUNT != 0 ] && exit 0; "
    agents.start("a", meeting, f"{TELL}; {first_fails} exec sleep 600", size=2)
    agents.start("b", meeting, f"{TELL}; {first_fails} exec sleep 600")
    wait_until(lambda: len(meeting.meeting.waiting) == 2, what="both there")
    agents.start("c", meeting, f"{TELL}; {first_fails} exit 3")
    assert set(agents.ended("a", "b", "c").values()) == {WorkerState.SUCCEEDED}
    told = "".join(agents.out(name, 2, rank) for name, rank in [("a", 0), ("a", 1), ("b", 0), ("c", 0)])
    assert sorted(told.splitlines()) == [f"{rank}/4 restart 1 of 3" for rank in range(4)]
    assert sorted(rank for name in "abc" for rank in agents.result(name).return_values) == [0, 1, 2, 3]


def test_without_a_restart_left_all_fail_with_the_first_cause(agents: Agents) -> None:
    meeting = InMemoryRendezvous("run", 2)
    agents.start("a", meeting, "exec sleep 600", restarts=0)
    agents.start("b", meeting, "exit 3", restarts=0)
    assert agents.ended("a", "b") == dict.fromkeys(("a", "b"), WorkerState.FAILED)
    assert "restarts used: 0 of 0" in agents.result("a").reason
    for name in ("a", "b"):
        assert [failure.exitcode for failure in agents.result(name).failures.values()] == [3]


def test_a_late_comer_enlarges_the_round_and_a_stopped_agent_shrinks_it(agents: Agents) -> None:
    meeting = InMemoryRendezvous("run", 1, 3, last_call_timeout=0.0)
    # Who looks for the end after it has told may see one that came because it had told.
    wait = f'end=$(ls end 2>&1) || end=; {TELL}; [ "$end" ] || exec sleep 600'
    agents.start("a", meeting, wait)
    agents.says("a", 1, "0/1 restart 0 of 3")
    agents.start("b", meeting, wait)
    agents.says("a", 2, "0/2 restart 0 of 3")
    agents.says("b", 2, "1/2 restart 0 of 3")
    (agents.folder / "end").touch()
    agents.by_name["a"].request_stop()
    assert agents.ended("a", "b") == {"a": WorkerState.STOPPED, "b": WorkerState.SUCCEEDED}
    assert agents.out("b", 3) == "0/1 restart 0 of 3\n"


def test_a_spare_that_is_not_needed_ends_in_peace_and_one_that_is_takes_over(agents: Agents) -> None:
    meeting = InMemoryRendezvous("run", 1, 1)
    agents.start("a", meeting, "exec sleep 600")
    wait_until(lambda: meeting.meeting.beat is Beat.RUNNING, what="the first round")
    agents.start("b", meeting, f"{TELL}; until [ -e end ]; do sleep 0.02; done")
    wait_until(lambda: meeting.meeting.waiting, what="the first spare")
    agents.start("c", meeting, TELL)
    wait_until(lambda: len(meeting.meeting.waiting) == 2, what="the second spare")
    agents.by_name["a"].request_stop()
    agents.says("b", 2, "0/1 restart 0 of 3")
    (agents.folder / "end").touch()
    assert agents.ended("b", "c") == dict.fromkeys(("b", "c"), WorkerState.SUCCEEDED)
    assert agents.result("c").return_values == {}


def test_a_done_agent_waits_for_the_others_and_restarts_with_them(agents: Agents) -> None:
    meeting = InMemoryRendezvous("run", 2)
    agents.start("a", meeting, "true")
    agents.start("b", meeting, "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || exec sleep 600")
    wait_until(lambda: meeting.meeting.done, what="one that is done")
    agents.says("a", 1, "")
    (worker,) = agents.by_name["b"].get_worker_group().workers
    wait_until(lambda: worker.id or agents.by_name["b"].get_worker_group().workers[0].id, what="a pid")
    agents.by_name["b"].signal_workers(9)
    assert agents.ended("a", "b") == dict.fromkeys(("a", "b"), WorkerState.SUCCEEDED)
    assert (meeting.meeting.round, meeting.meeting.restart_count) == (2, 1)


def test_a_stop_ends_the_wait_for_others(agents: Agents) -> None:
    meeting = InMemoryRendezvous("run", 2)
    agents.start("a", meeting, "true")
    wait_until(lambda: meeting.meeting.waiting, what="the wait")
    agents.by_name["a"].request_stop()
    assert agents.ended("a") == {"a": WorkerState.STOPPED}
    assert not meeting.meeting.waiting


def test_too_few_agents_are_a_timeout_that_counts_them() -> None:
    handler = InMemoryRendezvous("lonely", 2, join_timeout=0.1).handler()
    with pytest.raises(RendezvousTimeoutError, match=r"'lonely': 1 of at least 2 agents came within 0\.1 s"):
        handler.next_rendezvous()


def test_a_handler_serves_without_an_agent() -> None:
    meeting = InMemoryRendezvous("run", 1)
    handler, spare = meeting.handler(role="r", local_world_size=4), meeting.handler()
    info = handler.next_rendezvous()
    assert isinstance(info, AssignedRendezvousInfo)
    assert (info.rank, info.world_size, info.assignment.world_size) == (0, 1, 4)
    assert (handler.get_backend(), handler.get_run_id(), handler.num_nodes_waiting()) == (
        "in-memory",
        "run",
        0,
    )
    refused = threading.Thread(target=_raises, args=(spare, RendezvousGracefulExitError))
    refused.start()
    wait_until(lambda: meeting.meeting.waiting, what="a spare")
    assert not handler.is_closed()
    handler.set_closed()
    refused.join()
    assert handler.is_closed()
    _raises(spare, RendezvousClosedError)
    handler.shutdown()
    _raises(handler, RendezvousClosedError)


def _raises(handler: RendezvousHandler, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        handler.next_rendezvous()
