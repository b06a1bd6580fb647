"""Tells a coordinating rendezvous of workers' starts and ends, each round's starts before its ends."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from agentd.elastic.agent.server.spec import WorkerGroup
from agentd.elastic.multiprocessing import PContext
from agentd.elastic.rendezvous.coordinated import CoordinatedRendezvous, WorkerExit, WorkerStart
from agentd.procs.exits import ExitInfo

log = logging.getLogger(__name__)


class RoundTeller:
    """Of one round. Without a coordinator it only logs."""

    def __init__(self, coordinator: CoordinatedRendezvous | None, group: WorkerGroup) -> None:
        self._coordinator = coordinator
        self._round = group.round
        self._workers = {worker.local_rank: worker for worker in group.workers}
        self._context: PContext | None = None
        self._held_back: list[WorkerExit] | None = None
        """Ends of workers while others are being started; None: no start is under way."""

    @contextlib.contextmanager
    def starting(self, context: PContext) -> Iterator[None]:
        """All workers are started in here, or that fails; afterwards the rendezvous knows."""
        self._context, self._held_back = context, []
        try:
            yield
            if self._coordinator is not None:
                self._coordinator.on_workers_started(self._round, self._starts(context))
        finally:
            held_back, self._held_back = self._held_back, None
            for exit_ in held_back:
                self._tell(exit_)

    def exited(self, local_rank: int, info: ExitInfo, torn_down: bool) -> None:
        """A worker ended. Called from inside a wait."""
        worker = self._workers[local_rank]
        log.info("worker ended: rank %d, %s", worker.global_rank, info.summary)
        if self._context is None:
            return
        exit_ = WorkerExit(
            local_rank=local_rank,
            rank=worker.global_rank,
            pid=self._context.children[local_rank].pid,
            exit_code=info.exit_code,
            signal=info.signal,
            torn_down=torn_down,
        )
        if self._held_back is None:
            self._tell(exit_)
        else:
            self._held_back.append(exit_)

    def _tell(self, exit_: WorkerExit) -> None:
        if self._coordinator is not None:
            self._coordinator.on_worker_exit(self._round, exit_)

    def _starts(self, context: PContext) -> list[WorkerStart]:
        starts = []
        for local_rank, worker in self._workers.items():
            child = context.children[local_rank]
            starts.append(
                WorkerStart(
                    local_rank=local_rank,
                    rank=worker.global_rank,
                    role_rank=worker.role_rank,
                    pid=child.pid,
                    start_time=child.identity.start_time,
                    started_at=child.started_at,
                    log_dir=_folder_of(context.error_files[local_rank]),
                )
            )
        return starts


def _folder_of(error_file: str) -> str:
    """Empty where nothing is kept."""
    return "" if error_file == os.devnull else str(Path(error_file).parent)
