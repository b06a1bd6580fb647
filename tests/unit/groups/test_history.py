"""Which events of a group are worth a line, and what the line says."""

from __future__ import annotations

import itertools
from dataclasses import replace

from agentd.api.history import EventKind, EventWorker
from agentd.api.types import (
    Failure,
    NodeStatus,
    Phase,
    RunStatus,
    StopRequest,
    StopScope,
    WorkerState,
    WorkerStatus,
)
from agentd.core import group_events as ev
from agentd.core.group import GroupState, step
from agentd.groups import history
from agentd.groups.records import EventRow
from agentd.host.wire import HostSpec

SPEC = HostSpec(
    run_id="job", incarnation=7, role="default", node_id="n", token="", local_world_size=2, argv=("x",),
    env={}, cwd="/", stop_grace_s=1.0, monitor_interval_s=0.1, log_root="/l", max_restarts=0,
    master_addr="", master_port=0,
)  # fmt: skip
STATE = GroupState(role="default", local_world_size=2, stop_grace=1.0)
RUN = RunStatus(run_id="job", incarnation=7, phase=Phase.RUNNING, round=2, reason="so it was")


def workers(*pids: int) -> tuple[WorkerStatus, ...]:
    return tuple(
        WorkerStatus(
            role="default", rank=rank, local_rank=rank, role_rank=rank, pid=pid, state=WorkerState.HEALTHY
        )
        for rank, pid in enumerate(pids)
    )


def lines(*events: ev.GroupEvent, state: GroupState = STATE) -> list[EventRow]:
    """What the events of a group's life leave."""
    told: list[EventRow] = []
    for event in events:
        before, (state, _) = state, step(state, event, 0.0)
        told.extend(history.of_group(SPEC, event, before, state, 5.0))
    return told


def test_an_event_that_changes_nothing_worth_telling_leaves_no_line() -> None:
    assert lines(ev.Tick(), ev.HostEnding("because")) == []


def test_the_hub_tells_each_change_of_a_node_once() -> None:
    well = NodeStatus(node_id="b", phase=Phase.RUNNING, name="two")
    away = replace(well, detached=True, reason="out of touch")
    lost = NodeStatus(node_id="b", phase=Phase.LOST, name="two", reason="silent")
    views = [replace(RUN, nodes=(node,)) for node in (well, away, away, well, away, lost, lost, well)]
    told = [history.nodes_changed(before, after, 5.0) for before, after in itertools.pairwise(views)]
    assert [(line.kind, line.detail) for line in itertools.chain.from_iterable(told)] == [
        (EventKind.NODE_DETACHED, "two: out of touch"),
        (EventKind.NODE_BACK, "two"),
        (EventKind.NODE_DETACHED, "two: out of touch"),
        (EventKind.NODE_LOST, "two: silent"),
        (EventKind.NODE_BACK, "two"),
    ]


def test_a_node_that_the_hub_hears_of_for_the_first_time_and_an_ended_run_are_no_change() -> None:
    away = NodeStatus(node_id="b", phase=Phase.RUNNING, detached=True)
    assert history.nodes_changed(RUN, replace(RUN, nodes=(away,)), 5.0) == ()
    before = replace(RUN, nodes=(replace(away, detached=False),))
    assert history.nodes_changed(before, replace(RUN, nodes=(away,), phase=Phase.STOPPED), 5.0) == ()


def test_a_host_is_told_with_its_pid_and_its_end_with_its_last_words() -> None:
    told = lines(ev.Begin(), ev.HostSpawned(71), ev.HostEnding("no more memory"), ev.HostDied("exit code 3"))
    assert [(line.kind, line.detail) for line in told] == [
        (EventKind.HOST_STARTED, "pid 71"),
        (EventKind.HOST_ENDED, "no more memory"),
    ]
    assert {(line.run_id, line.incarnation, line.role, line.time) for line in told} == {
        ("job", 7, "default", 5.0)
    }


def test_workers_are_told_with_ranks_pids_and_how_they_ended() -> None:
    begun = lines(ev.Begin())
    live = replace(step(STATE, ev.Begin(), 0.0)[0], round=1, phase=Phase.RUNNING, workers=workers(10, 11))
    told = lines(
        ev.WorkerExited(1, 1, 7, None, torn_down=False),
        ev.WorkerExited(1, 0, None, 15, torn_down=True),
        state=live,
    )
    assert begun == []
    assert [(line.detail, line.workers) for line in told] == [
        ("by itself", (EventWorker(rank=1, local_rank=1, pid=11, exit_code=7),)),
        ("torn down", (EventWorker(rank=0, local_rank=0, pid=10, signal=15),)),
    ]


def test_a_failure_is_told_with_its_cause() -> None:
    live = replace(step(STATE, ev.Begin(), 0.0)[0], round=1, phase=Phase.RUNNING, workers=workers(10, 11))
    failure = Failure(
        node_id="n", rank=1, local_rank=1, pid=11, signal=9, message="Traceback\\nValueError: x"
    )
    (told,) = lines(ev.WorkersFailed(1, (failure,), (0.0,)), state=live)
    assert told.kind == EventKind.WORKERS_FAILED
    assert "rank 1 on node n: SIGKILL" in told.detail
    assert "ValueError: x" in told.detail


def test_a_stop_is_told_with_who_why_and_how_far() -> None:
    whole = history.stop_asked(RUN, StopRequest(run_id="job", reason="night", grace=3), "10.0.0.9:7", 1.0)
    part = history.stop_asked(RUN, StopRequest(run_id="job", scope=StopScope.LEAVE), "", 1.0)
    assert whole.detail == "the end of the whole run, within 3 s, asked from 10.0.0.9:7: night"
    assert part.detail == "the end of this node's part, asked from here"


def test_a_run_is_told_with_its_hub() -> None:
    assert history.run_started(RUN, "", 1.0).detail == "this node is its hub"
    assert history.run_started(RUN, "b:7460", 1.0).detail == "its hub is b:7460"


def test_the_end_of_a_run_names_its_first_failure() -> None:
    failure = Failure(node_id="b", rank=3, pid=5, exit_code=42)
    told = history.run_ended(replace(RUN, phase=Phase.FAILED, first_failure=failure), 1.0)
    assert (told.phase, told.round) == (Phase.FAILED, 2)
    assert told.detail == "so it was; first failure: rank 3 on node b: exit code 42"


def test_every_kind_is_a_word_and_documented_once() -> None:
    assert len({kind.value for kind in EventKind}) == len(EventKind)
    assert all(kind.value == kind.name.lower() for kind in EventKind)
