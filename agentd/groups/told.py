"""What a report of a host means to its worker group: the host's words in the group's. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import chain, repeat
from typing import TypeAlias

from agentd.api.types import Failure, WorkerState, WorkerStatus
from agentd.core import group_events as ev
from agentd.groups.logs import WorkerLog
from agentd.groups.records import ElasticEventRow
from agentd.host import wire
from agentd.procs.tree import StuckProcess, unkillable

Told: TypeAlias = (
    wire.Ready
    | wire.Started
    | wire.Exited
    | wire.Failed
    | wire.Done
    | wire.Isolated
    | wire.Unkillable
    | wire.Ended
)
"""All reports but what the elastic agent of a host records, which changes nothing."""


def event_of(spec: wire.HostSpec, frame: Told) -> ev.GroupEvent:
    """The event that a report of the group's host is."""
    match frame:
        case wire.Ready():
            return ev.HostReady(frame.master_port)
        case wire.Started():
            workers = tuple(_worker(spec.role, each) for each in frame.workers)
            return ev.WorkersStarted(frame.round, workers, frame.preload_problem)
        case wire.Exited():
            return ev.WorkerExited(
                frame.round, frame.local_rank, frame.exit_code, frame.signal, frame.torn_down
            )
        case wire.Failed():
            return _failed(spec, frame)
        case wire.Done():
            return ev.WorkersDone(frame.round)
        case wire.Isolated():
            return ev.RoundStopped(frame.round, frame.reason)
        case wire.Unkillable():
            return ev.WorkersUnkillable(unkillable(_stuck(frame)))
        case wire.Ended():
            return ev.HostEnding(frame.reason)


def end_of(frame: wire.Exited) -> WorkerState:
    """How a worker ended."""
    if frame.torn_down:
        return WorkerState.STOPPED
    return WorkerState.SUCCEEDED if frame.exit_code == 0 else WorkerState.FAILED


def may_be_a_stop(frame: wire.Exited) -> bool:
    """Whether it may have been meant for the host and all its workers, as when the machine goes down."""
    return frame.signal == signal.SIGTERM or frame.exit_code == 128 + signal.SIGTERM


def recorded(spec: wire.HostSpec, frame: wire.Recorded) -> ElasticEventRow:
    """What the elastic agent of the host recorded, for the journal."""
    return ElasticEventRow(
        run_id=spec.run_id,
        incarnation=spec.incarnation,
        role=spec.role,
        sequence=frame.sequence,
        event=frame.event,
    )


def logs_of(event: ev.WorkersStarted) -> tuple[WorkerLog, ...]:
    """The log folders of workers that were started."""
    return tuple(
        WorkerLog(
            role=worker.role,
            round=event.round,
            local_rank=worker.local_rank,
            rank=worker.rank,
            directory=worker.log_dir,
        )
        for worker in event.workers
        if worker.log_dir
    )


def _worker(role: str, worker: wire.StartedWorker) -> WorkerStatus:
    return WorkerStatus(
        role=role,
        rank=worker.rank,
        local_rank=worker.local_rank,
        role_rank=worker.role_rank,
        pid=worker.pid,
        state=WorkerState.HEALTHY,
        started_at=worker.started_at,
        log_dir=worker.log_dir,
    )


def _failed(spec: wire.HostSpec, frame: wire.Failed) -> ev.WorkersFailed:
    failures = tuple(
        Failure(
            node_id=spec.node_id,
            role=spec.role,
            round=frame.round,
            rank=worker.rank,
            local_rank=worker.local_rank,
            pid=worker.pid,
            exit_code=worker.exit_code,
            signal=worker.signal,
            message=worker.message,
            stderr_tail=worker.stderr_tail,
            time=worker.time,
            error_file=worker.error_file,
            log_dir=worker.log_dir,
        )
        for worker in frame.failures
    )
    ages = tuple(worker.age_s for worker in frame.failures)
    return ev.WorkersFailed(frame.round, failures, ages, frame.reason)


def _stuck(frame: wire.Unkillable) -> Iterator[StuckProcess]:
    # The host may not have told where all of them hang.
    channels = chain(frame.wait_channels, repeat(""))
    return map(StuckProcess, frame.pids, channels)
