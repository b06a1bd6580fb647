"""The life of a group without processes: what SimpleElasticAgent does with each answer of its parts."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from agentd.elastic import (
    ProcessFailure,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from agentd.elastic.rendezvous import (
    AssignedRendezvousInfo,
    Assignment,
    RendezvousClosedError,
    RendezvousGracefulExitError,
    RendezvousStateError,
    Verdict,
    WorkerExit,
    WorkerStart,
)

PLACE = Assignment(
    round=7,
    group_rank=0,
    group_world_size=1,
    rank_base=0,
    world_size=2,
    role_rank_base=0,
    role_world_size=2,
    restart_count=4,
    max_restarts=9,
    master_addr="there",
    master_port=1,
)


@dataclass
class Coordinator(RendezvousHandler):
    """Answers by list, writes down what it is told."""

    verdicts: list[Verdict] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    """Raised by the next rendezvous, if any."""
    calls: list[str] = field(default_factory=list)
    over: bool = False

    def get_backend(self) -> str:
        return "test"

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        raise AssertionError

    def num_nodes_waiting(self) -> int:
        raise AssertionError

    def get_run_id(self) -> str:
        return "run"

    def shutdown(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        if self.errors:
            raise self.errors.pop()
        self.over = False
        return AssignedRendezvousInfo(PLACE)

    def on_workers_started(self, round: int, workers: Sequence[WorkerStart]) -> None:
        raise AssertionError("only an agent with processes tells this")

    def on_worker_exit(self, round: int, worker: WorkerExit) -> None:
        raise AssertionError("only an agent with processes tells this")

    def on_failure(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> Verdict:
        self.calls.append(f"failure {round} {reason}".strip())
        return self.verdicts.pop(0)

    def on_late_failure(self, round: int, failures: Mapping[int, ProcessFailure]) -> None:
        raise AssertionError("only an agent with processes tells this")

    def on_done(self, round: int) -> Verdict:
        self.calls.append(f"done {round}")
        return self.verdicts.pop(0)

    def round_over(self) -> bool:
        return self.over

    def on_round_gone(self, round: int) -> None:
        self.calls.append(f"gone {round}")


class FakeAgent(SimpleElasticAgent):
    """Workers that exist in name only; `answers` is how they are, look by look."""

    def __init__(self, handler: RendezvousHandler, answers: Sequence[WorkerState], restarts: int = 0) -> None:
        spec = WorkerSpec("w", 2, handler, entrypoint="x", max_restarts=restarts, monitor_interval=0.001)
        super().__init__(spec, shutdown_timeout=3)
        self.answers = list(answers)
        self.done: list[str] = []
        self.start_errors: list[Exception] = []

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self.start_errors:
            raise self.start_errors.pop()
        self.done.append(f"start {self._restart_count}/{self._max_restarts}")
        return {0: "a", 1: "b"}

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self.done.append("stop")

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        return RunResult(self.answers.pop(0), reason="looks bad")

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: float = 30) -> None:
        self.done.append(f"shutdown {death_sig.name} {timeout:g}")


OK, BAD, SICK, GOOD = (
    WorkerState.HEALTHY,
    WorkerState.FAILED,
    WorkerState.UNHEALTHY,
    WorkerState.SUCCEEDED,
)


def test_a_good_run_ends_with_the_answer_and_a_shutdown() -> None:
    handler = Coordinator([Verdict.END])
    agent = FakeAgent(handler, [OK, OK, GOOD])
    assert agent.run().state is GOOD
    assert agent.done == ["start 4/9", "shutdown SIGTERM 3"]
    assert handler.calls == ["done 7", "gone 7"]
    group = agent.get_worker_group()
    assert [worker.id for worker in group.workers] == ["a", "b"]
    assert (group.round, group.master_addr, group.master_port, group.state) == (7, "there", 1, GOOD)


def test_a_done_group_restarts_when_the_run_does() -> None:
    handler = Coordinator([Verdict.RESTART, Verdict.END])
    agent = FakeAgent(handler, [GOOD, GOOD])
    assert agent.run().state is GOOD
    assert agent.done == ["start 4/9", "stop", "start 4/9", "shutdown SIGTERM 3"]


@pytest.mark.parametrize("bad", [BAD, SICK])
def test_a_failure_without_another_round_is_failed_also_when_unhealthy(bad: WorkerState) -> None:
    handler = Coordinator([Verdict.RESTART, Verdict.END])
    result = (agent := FakeAgent(handler, [OK, bad, bad])).run()
    assert (result.is_failed(), result.reason) == (True, "looks bad")
    assert agent.done == ["start 4/9", "stop", "start 4/9", "stop", "shutdown SIGTERM 3"]
    assert handler.calls == ["failure 7 looks bad", "gone 7"] * 2


def test_a_round_that_is_over_costs_no_verdict() -> None:
    handler = Coordinator([Verdict.END])
    agent = FakeAgent(handler, [OK, OK, GOOD])

    def end_first_round(_now: float) -> None:
        handler.over = len(agent.done) == 1

    agent._waiter.add_pump(end_first_round)
    assert agent.run().state is GOOD
    assert handler.calls == ["gone 7", "done 7", "gone 7"]


def test_an_unknown_state_is_an_error_that_names_it() -> None:
    agent = FakeAgent(Coordinator(), [WorkerState.UNKNOWN])
    with pytest.raises(RuntimeError, match="UNKNOWN"):
        agent.run()
    assert agent.done[-1] == "shutdown SIGTERM 3"


def test_a_graceful_exit_is_a_result_not_none() -> None:
    agent = FakeAgent(Coordinator(errors=[RendezvousGracefulExitError("full")]), [])
    assert agent.run() == RunResult(WorkerState.SUCCEEDED)


def test_other_rendezvous_errors_pass() -> None:
    agent = FakeAgent(Coordinator(errors=[RendezvousClosedError("closed")]), [])
    with pytest.raises(RendezvousClosedError):
        agent.run()
    assert agent.done == ["shutdown SIGTERM 3"]


def test_a_start_error_is_a_failure_of_the_round() -> None:
    handler = Coordinator([Verdict.RESTART, Verdict.END])
    agent = FakeAgent(handler, [GOOD])
    agent.start_errors = [OSError("disk full")]
    assert agent.run().state is GOOD
    assert handler.calls == ["failure 7 disk full", "gone 7", "done 7", "gone 7"]


def test_a_programming_error_is_not_taken_for_a_start_error() -> None:
    agent = FakeAgent(Coordinator(), [])
    agent.start_errors = [TypeError("a bug")]
    with pytest.raises(TypeError, match="a bug"):
        agent.run()


def test_run_may_be_called_again() -> None:
    handler = Coordinator([Verdict.END, Verdict.END])
    agent = FakeAgent(handler, [GOOD, GOOD])
    assert agent.run().state is agent.run().state is GOOD


def test_a_place_of_a_coordinating_rendezvous_has_no_store() -> None:
    info = AssignedRendezvousInfo(PLACE)
    assert (info.rank, info.world_size) == (0, 1)
    assert info.bootstrap_store_info == RendezvousStoreInfo("there", 1)
    with pytest.raises(RendezvousStateError):
        _ = info.store


@pytest.mark.parametrize(
    ("size", "interval", "entrypoint"), [(0, 1.0, "x"), (-1, 1.0, "x"), (1, 0.0, "x"), (1, 1.0, "")]
)
def test_a_senseless_spec_is_refused(size: int, interval: float, entrypoint: str) -> None:
    with pytest.raises(AssertionError, match=r"."):
        WorkerSpec("w", size, Coordinator(), entrypoint=entrypoint, monitor_interval=interval)


def test_the_deprecated_name_of_the_entrypoint_works() -> None:
    with pytest.warns(DeprecationWarning, match="use entrypoint"):
        spec = WorkerSpec("w", 1, Coordinator(), fn=print)
    assert spec.entrypoint is print
    assert spec.get_entrypoint_name() == "print"


def test_a_launcher_of_torchs_manner_gets_its_events() -> None:
    agent = FakeAgent(Coordinator([Verdict.END]), [GOOD])
    agent.run()
    event = agent.get_event_succeeded()
    assert (event.name, event.metadata["state"]) == ("torchelastic.worker.status.SUCCEEDED", "SUCCEEDED")
    try:
        raise LookupError("no such thing")
    except LookupError:
        failed = agent.get_event_failed()
    assert failed.metadata["state"] == "FAILED"
    assert "LookupError: no such thing" in str(failed.metadata["raw_error"])


def test_a_second_run_beside_the_first_is_refused_and_harms_nothing() -> None:
    agent = FakeAgent(Coordinator([Verdict.END]), [OK, GOOD])
    refusals: list[str] = []

    def run_again(_now: float) -> None:
        if not refusals:
            with pytest.raises(RuntimeError, match="runs already") as refused:
                agent.run()
            refusals.append(str(refused.value))

    agent._waiter.add_pump(run_again)
    assert agent.run().state is GOOD
    assert len(refusals) == 1
