"""Failures of workers as an agent knows them, to what hubs are told and back."""

from __future__ import annotations

from collections.abc import Mapping

from agentd.api.types import Failure
from agentd.elastic.multiprocessing.errors.failure import NOT_AVAILABLE, ProcessFailure
from agentd.procs.exits import exit_of


def reported(
    failures: Mapping[int, ProcessFailure], log_dirs: Mapping[int, str]
) -> list[tuple[Failure, float]]:
    """What a hub is told of failures by global rank, each with its age in seconds, the oldest first."""
    aged = [
        (_report(rank, failure, log_dirs.get(rank, "")), failure.age_s())
        for rank, failure in failures.items()
    ]
    return sorted(aged, key=lambda pair: -pair[1])


def answered(first: Failure, node_id: str, own: Mapping[int, ProcessFailure]) -> dict[int, ProcessFailure]:
    """By global rank, what the agent of `node_id` answers with when `first` has failed the run.

    The first failure leads, wherever it was; the agent's own ones follow.
    """
    if first.node_id == node_id and first.rank in own:
        return {first.rank: own[first.rank], **own}
    remote = _received(first)
    # The clocks of machines differ, but who was first is decided.
    remote.timestamp = min([remote.timestamp, *(failure.timestamp for failure in own.values())])
    return {first.rank: remote, **{rank: failure for rank, failure in own.items() if rank != first.rank}}


def _report(rank: int, failure: ProcessFailure, log_dir: str) -> Failure:
    ended = exit_of(failure.exitcode)
    return Failure(
        rank=rank,
        local_rank=failure.local_rank,
        pid=failure.pid,
        exit_code=ended.exit_code,
        signal=ended.signal,
        message=failure.message_text(),
        stderr_tail=failure.stderr_tail(),
        time=failure.exited_at,
        error_file="" if failure.error_file == NOT_AVAILABLE else failure.error_file,
        log_dir=log_dir,
    )


def _received(failure: Failure) -> ProcessFailure:
    received = ProcessFailure(
        local_rank=failure.local_rank,
        pid=failure.pid,
        exitcode=-failure.signal if failure.signal else failure.exit_code or 0,
        # On another machine the same path may be another file.
        error_file=NOT_AVAILABLE,
        exited_at=failure.time,
    )
    received.message = failure.message
    return received
