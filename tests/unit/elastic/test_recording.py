"""What an agent records of its group is torch's, worker by worker, and never a reason to fail."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic import (
    ProcessFailure,
    RendezvousHandler,
    RendezvousInfo,
    RunResult,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
    events,
    metrics,
)
from agentd.elastic.agent.server.recording import GroupRecorder, end_metrics, end_state
from agentd.elastic.events import Event, EventSource
from agentd.elastic.metrics import MetricData, MetricHandler
from agentd.elastic.metrics import api as metrics_api

S = WorkerState


class Kept(logging.Handler):
    """Keeps the events it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(Event.deserialize(record.getMessage()))


class KeptMetrics(MetricHandler):
    """Keeps the metrics it gets."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def emit(self, metric_data: MetricData) -> None:
        self.values[metric_data.name] = metric_data.value


class Named(RendezvousHandler):
    """A rendezvous that only has a name."""

    def get_backend(self) -> str:
        return "named"

    def next_rendezvous(self) -> RendezvousInfo:
        raise NotImplementedError

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None: ...

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "job-7"

    def shutdown(self) -> bool:
        return True


class Nameless(Named):
    """A rendezvous that does not even have that."""

    def get_run_id(self) -> str:
        raise ConnectionError("store gone")


@dataclass
class Request:
    """A timer request, as the watchdog has it."""

    worker_pid: int = 42
    scope_id: str = "step"
    expiration_time: float = 12.5
    signal: int = 9


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    events.register("kept-recording", handler, replace=True)
    yield handler
    events.register("kept-recording", logging.NullHandler, replace=True)


@pytest.fixture
def kept_metrics(monkeypatch: pytest.MonkeyPatch) -> KeptMetrics:
    handler = KeptMetrics()
    monkeypatch.setattr(metrics_api, "_handlers", {"torchelastic": handler})
    return handler


def spec(rendezvous: RendezvousHandler | None = None, handler: str = "kept-recording") -> WorkerSpec:
    return WorkerSpec(
        "trainer", 2, rendezvous or Named(), entrypoint="/bin/train.py", event_log_handler=handler
    )


def group(of: WorkerSpec | None = None) -> WorkerGroup:
    made = WorkerGroup(of or spec())
    made.workers = [Worker(0, 2, 2, 4, 4), Worker(1, 3, 3, 4, 4)]
    for worker in made.workers:
        worker.id = 100 + worker.local_rank
    made.group_rank, made.group_world_size, made.round = 1, 2, 5
    return made


def failure(tmp_path: Path, exitcode: int = 3) -> ProcessFailure:
    path = tmp_path / "error.json"
    path.write_text('{"message": "boom"}')
    return ProcessFailure(1, 101, exitcode, str(path))


def inner(event: Event) -> dict[str, Any]:
    text = event.metadata["metadata"]
    assert isinstance(text, str)
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_start_is_recorded_for_each_worker_with_all_that_torch_tells(kept: Kept) -> None:
    GroupRecorder(spec()).started(group(), 1)
    first, second = kept.events
    assert (first.name, first.source) == ("torchelastic.worker.status.START", EventSource.WORKER)
    assert first.timestamp > 0
    told = dict(first.metadata)
    assert isinstance(told.pop("hostname"), str)
    assert json.loads(str(told.pop("metadata"))) == {
        "group_world_size": 2,
        "entry_point": "train.py",
        "round": 5,
        "local_rank": 0,
        "role_rank": 2,
        "role_world_size": 4,
        "exit_code": None,
        "worker_pid": 100,
    }
    assert told == {
        "run_id": "job-7",
        "global_rank": 2,
        "group_rank": 1,
        "worker_id": "100",
        "role": "trainer",
        "state": "START",
        "total_run_time": 0,
        "rdzv_backend": "named",
        "raw_error": None,
        "agent_restarts": 1,
        "duration_ms": None,
    }
    assert second.metadata["global_rank"] == 3


def test_steps_of_the_agent_are_recorded_with_their_duration(kept: Kept) -> None:
    recorder = GroupRecorder(spec())
    recorder.rendezvous(group(), 12.5)
    recorder.ranks_assigned(group(), 0.5)
    assert [(event.name.rpartition(".")[2], event.metadata["duration_ms"]) for event in kept.events] == [
        ("RENDEZVOUS", 12.5),
        ("ASSIGN_WORKER_RANKS", 0.5),
    ]
    assert {event.source for event in kept.events} == {EventSource.AGENT}
    assert {event.metadata["worker_id"] for event in kept.events} == {None}


@pytest.mark.parametrize(
    ("state", "failed", "returned", "expected"),
    [
        (S.SUCCEEDED, False, True, "SUCCEEDED"),
        (S.SUCCEEDED, False, False, "SUCCEEDED"),
        (S.SUCCEEDED, True, False, "FAILED"),
        (S.FAILED, True, False, "FAILED"),
        (S.FAILED, False, False, "TERMINATED"),
        (S.FAILED, False, True, "SUCCEEDED"),
        (S.UNHEALTHY, True, False, "FAILED"),
        (S.UNHEALTHY, False, False, "TERMINATED"),
        (S.STOPPED, False, False, "TERMINATED"),
        (S.STOPPED, True, False, "FAILED"),
    ],
)
def test_how_a_worker_ended_follows_from_the_result(
    state: WorkerState, failed: bool, returned: bool, expected: str, tmp_path: Path
) -> None:
    failures = {3: failure(tmp_path)} if failed else {}
    assert end_state(RunResult(state, {3: None} if returned else {}, failures), 3) == expected


def test_the_end_tells_who_failed_and_how(kept: Kept, tmp_path: Path) -> None:
    result = RunResult(S.FAILED, {}, {3: failure(tmp_path, -9)}, reason="sick")
    GroupRecorder(spec()).ended(group(), result, 2, 61.9)
    other, failed = kept.events
    assert [event.metadata["state"] for event in kept.events] == ["TERMINATED", "FAILED"]
    assert json.loads(str(failed.metadata["raw_error"])) == {"message": "boom"}
    assert (inner(failed)["exit_code"], inner(failed)["worker_pid"], inner(failed)["reason"]) == (
        -9,
        101,
        "sick",
    )
    assert (other.metadata["raw_error"], inner(other)["exit_code"]) == (None, None)
    assert (failed.metadata["total_run_time"], failed.metadata["agent_restarts"]) == (61, 2)


def test_a_worker_that_left_no_error_file_is_told_by_its_exit_status(kept: Kept) -> None:
    gone = ProcessFailure(1, 101, -9, "/nowhere")
    GroupRecorder(spec()).ended(group(), RunResult(S.FAILED, failures={3: gone}), 0, 1)
    assert "SIGKILL" in json.loads(str(kept.events[1].metadata["raw_error"]))["message"]


def test_a_success_tells_exit_code_zero_even_without_a_value(kept: Kept) -> None:
    GroupRecorder(spec()).ended(group(), RunResult(S.SUCCEEDED), 0, 1)
    assert [(event.metadata["state"], inner(event)["exit_code"]) for event in kept.events] == [
        ("SUCCEEDED", 0),
        ("SUCCEEDED", 0),
    ]


def test_workers_that_never_started_have_no_end(kept: Kept) -> None:
    GroupRecorder(spec()).ended(WorkerGroup(spec()), RunResult(S.STOPPED), 0, 1)
    assert kept.events == []


def test_the_watchdog_s_events_have_its_names_and_the_timer_s_facts(kept: Kept) -> None:
    recorder = GroupRecorder(spec())
    recorder.started(group(), 0)
    recorder.watchdog("watchdog started", None)
    recorder.watchdog("timer expired", Request())
    started, expired = kept.events[2:]
    assert (started.name, started.source, started.metadata["state"]) == (
        "watchdog started",
        EventSource.AGENT,
        "RUNNING",
    )
    assert expired.metadata["group_rank"] == 1
    told = {name: inner(expired)[name] for name in ("watchdog_event", "worker_pid", "scope_id", "signal")}
    assert told == {
        "watchdog_event": "timer expired",
        "worker_pid": "42",
        "scope_id": "step",
        "signal": "9",
    }


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (RunResult(S.SUCCEEDED), "SUCCEEDED"),
        (RunResult(S.FAILED), "FAILED"),
        (RunResult(S.UNHEALTHY), "FAILED"),
        (RunResult(S.STOPPED), "STOPPED"),
        (None, "FAILED"),
    ],
)
def test_the_agent_s_own_end_is_told_as_it_was(kept: Kept, result: RunResult | None, state: str) -> None:
    GroupRecorder(spec()).agent_ended(result, 5.5, raw_error=None if result else "Traceback ...")
    (event,) = kept.events
    assert (event.name, event.source) == (f"torchelastic.worker.status.{state}", EventSource.AGENT)
    assert event.metadata["raw_error"] == (None if result else "Traceback ...")
    assert event.metadata["total_run_time"] == 5


def test_the_agent_s_end_tells_why_where_no_worker_does(kept: Kept) -> None:
    GroupRecorder(spec()).agent_ended(RunResult(S.FAILED, reason="stuck"), 1)
    assert kept.events[0].metadata["raw_error"] == "stuck"


def test_an_unknown_handler_is_refused_before_anything_runs() -> None:
    with pytest.raises(events.UnknownEventHandler):
        GroupRecorder(spec(handler="consol"))


def test_a_rendezvous_that_cannot_tell_its_run_costs_only_the_name(kept: Kept) -> None:
    GroupRecorder(spec(Nameless())).started(group(), 0)
    assert [event.metadata["run_id"] for event in kept.events] == ["", ""]


def test_nothing_is_built_when_nothing_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(GroupRecorder, "_event", None)
    monkeypatch.setattr(metrics, "put_metric", None)
    monkeypatch.setattr(metrics_api, "_handlers", {})
    recorder = GroupRecorder(spec(handler="null"))
    recorder.rendezvous(group(), 1)
    recorder.ranks_assigned(group(), 1)
    recorder.started(group(), 0)
    recorder.watchdog("watchdog started", None)
    recorder.step_metrics(S.HEALTHY, 3)
    recorder.ended(group(), RunResult(S.FAILED, failures={3: failure(tmp_path)}), 0, 1)
    recorder.agent_ended(RunResult(S.FAILED), 1)
    recorder.end_metrics(RunResult(S.FAILED), 3)


def test_an_agent_without_listeners_does_not_import_events() -> None:
    script = "import sys, agentd.elastic.agent.server; sys.exit('agentd.elastic.events' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


def test_each_look_puts_the_state_and_what_is_left(kept_metrics: KeptMetrics) -> None:
    GroupRecorder(spec()).step_metrics(S.HEALTHY, 2)
    assert kept_metrics.values == {
        "workers.trainer.remaining_restarts": 2,
        "workers.trainer.healthy": 1,
    }


@pytest.mark.parametrize(
    ("state", "remaining", "flakiness", "one"),
    [
        (S.SUCCEEDED, 3, 0, "run_success_no_retries"),
        (S.SUCCEEDED, 1, 50, "run_success_with_retries"),
        (S.FAILED, 0, 100, "run_failed_with_retries"),
        (S.FAILED, 3, 100, "run_failed_no_retries"),
        (S.UNHEALTHY, 0, 100, "run_failed_with_retries"),
        (S.STOPPED, 2, 25, None),
    ],
)
def test_the_end_metrics_tell_one_outcome(
    state: WorkerState, remaining: int, flakiness: int, one: str | None
) -> None:
    values = end_metrics(state, remaining, 3)
    assert (values.pop("flakiness"), values.pop("run_total")) == (flakiness, 1)
    assert [name for name, value in values.items() if value] == ([one] if one else [])
    assert len(values) == 4


def test_the_end_metrics_are_put_under_the_role(kept_metrics: KeptMetrics) -> None:
    GroupRecorder(spec()).end_metrics(RunResult(S.SUCCEEDED), 9, max_restarts=9)
    assert kept_metrics.values["workers.trainer.run_success_no_retries"] == 1
    assert kept_metrics.values["workers.trainer.flakiness"] == 0


@pytest.mark.torch
def test_torch_builds_the_same_events_but_for_what_is_mended(kept: Kept, tmp_path: Path) -> None:
    from torch.distributed.elastic.agent.server import api as torch_api
    from torch.distributed.elastic.events.api import EventSource as TorchSource

    class Agent(torch_api.SimpleElasticAgent):
        def _start_workers(self, worker_group: Any) -> Any: ...
        def _stop_workers(self, worker_group: Any) -> Any: ...
        def _monitor_workers(self, worker_group: Any) -> Any: ...
        def _shutdown(self, *args: Any, **kwargs: Any) -> Any: ...

    rendezvous: Any = Named()
    theirs_spec = torch_api.WorkerSpec("trainer", 2, rendezvous, entrypoint="/bin/train.py")
    agent: Any = Agent(theirs_spec)
    ours = group()
    worker: Any = torch_api.Worker(1, 3, 3, 4, 4)
    worker.id = 101
    agent._worker_group.group_rank, agent._worker_group.group_world_size = 1, 2
    failed = failure(tmp_path)
    theirs = agent._construct_event(
        "FAILED", TorchSource.WORKER, worker, json.dumps(failed.error_file_data), None, 3, 101
    )
    GroupRecorder(spec()).ended(ours, RunResult(S.FAILED, failures={3: failed}), 0, 0)
    mine = kept.events[1]
    assert (mine.name, mine.source.value) == (theirs.name, theirs.source.value)
    apart = {"hostname", "metadata"}
    assert {k: v for k, v in mine.metadata.items() if k not in apart} == {
        k: v for k, v in theirs.metadata.items() if k not in apart
    }
    assert list(mine.metadata) == list(theirs.metadata)
    plain = {
        name: value[0] if isinstance(value, list) else value
        for name, value in json.loads(str(theirs.metadata["metadata"])).items()
    }
    assert inner(mine) == {**plain, "round": 5}
