"""The reports of a host in the words of its group."""

from __future__ import annotations

from pathlib import Path

from agentd.api.types import WorkerState
from agentd.core import group_events as ev
from agentd.groups import told
from agentd.host import wire
from tests.support.hosting import host_spec

SPEC = host_spec(Path("/"), role="trainer", node_id="n1")


def test_a_failure_names_its_node_and_role_and_keeps_the_age_that_the_host_gave() -> None:
    worker = wire.FailedWorker(rank=5, local_rank=1, pid=42, exit_code=3, message="no", age_s=1.5)
    event = told.event_of(SPEC, wire.Failed(sequence=7, round=2, failures=(worker,)))
    assert isinstance(event, ev.WorkersFailed)
    (failure,) = event.failures
    assert (failure.node_id, failure.role, failure.round) == ("n1", "trainer", 2)
    assert (failure.rank, failure.exit_code, failure.message) == (5, 3, "no")
    assert event.ages == (1.5,)


def test_workers_without_a_log_folder_leave_no_log() -> None:
    workers = tuple(
        wire.StartedWorker(
            local_rank=rank,
            rank=rank,
            role_rank=rank,
            pid=40 + rank,
            start_time=1,
            started_at=2.0,
            log_dir=where,
        )
        for rank, where in enumerate(("/logs/0", ""))
    )
    event = told.event_of(SPEC, wire.Started(sequence=1, round=3, workers=workers))
    assert isinstance(event, ev.WorkersStarted)
    assert [worker.state for worker in event.workers] == [WorkerState.HEALTHY] * 2
    assert [(log.role, log.round, log.rank, log.directory) for log in told.logs_of(event)] == [
        ("trainer", 3, 0, "/logs/0")
    ]


def test_what_cannot_be_killed_is_named_with_the_place_where_it_hangs() -> None:
    event = told.event_of(
        SPEC, wire.Unkillable(sequence=1, round=1, pids=(8, 9), wait_channels=("nfs_wait",))
    )
    assert isinstance(event, ev.WorkersUnkillable)
    assert event.description == "SIGKILL did not end 8 (nfs_wait), 9 (where is unknown)"
