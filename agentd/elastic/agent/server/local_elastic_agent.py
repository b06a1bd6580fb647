"""`LocalElasticAgent`: the workers are processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from agentd.api.states import WorkerState
from agentd.elastic.agent.server.api import RunResult, SimpleElasticAgent, WorkerGroup, WorkerSpec
from agentd.elastic.agent.server.stopping import StopRequest
from agentd.elastic.agent.server.worker_env import with_macros, worker_env
from agentd.elastic.multiprocessing import LogsSpecs, PContext, create_context
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.rendezvous.coordinated import WorkerExit, WorkerStart
from agentd.procs.exits import ExitInfo
from agentd.procs.waiter import Waiter

__all__ = ["LocalElasticAgent"]

log = logging.getLogger(__name__)


class LocalElasticAgent(SimpleElasticAgent):
    """Runs a program once for each local rank, each in a session of its own.

    Workers get SIGTERM and `shutdown_timeout` seconds, then SIGKILL; they die at once if this process does.
    Everything they started is ended with them, before the next round begins.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs,
        *,
        exit_barrier_timeout: float = 300,
        shutdown_timeout: float = 30,
        waiter: Waiter | None = None,
        signals: Sequence[signal.Signals] | None = None,
        base_env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        token: str | None = None,
        cgroup: str = "",
        owns_descendants: bool = False,
    ) -> None:
        """`base_env` is what workers share, by default this process' environment.

        `token` marks them and all they start (AGENTD_GROUP_TOKEN); one is made if none is given.
        `owns_descendants`: everything that descends from this process belongs to the workers. Only for a
        process that starts nothing else, best a subreaper.
        """
        if not isinstance(spec.entrypoint, str):
            raise TypeError(f"the entrypoint must be a program's path or name, not {spec.entrypoint!r}")
        super().__init__(spec, exit_barrier_timeout, shutdown_timeout, waiter=waiter, signals=signals)
        self._program = spec.entrypoint
        self._logs_specs = logs_specs
        self._base_env = os.environ if base_env is None else base_env
        self._cwd = cwd
        self._token = token or os.urandom(16).hex()
        self._cgroup = cgroup
        self._owns_descendants = owns_descendants
        self._pcontext: PContext | None = None
        self._early_exits: list[WorkerExit] | None = None
        """Of workers that ended while others were being started. None: no start is under way."""

    def signal_workers(self, signum: int, ranks: Collection[int] = ()) -> tuple[int, ...]:
        """Signal workers by global rank, all if none is named; answers those that ran. Not a stop.

        For the agent's own thread: a callback of its waiter.
        """
        if self._pcontext is None:
            return ()
        by_local_rank = {worker.local_rank: worker.global_rank for worker in self._worker_group.workers}
        wanted = {local for local, rank in by_local_rank.items() if not ranks or rank in ranks}
        return tuple(by_local_rank[local] for local in self._pcontext.send_signal(signum, wanted))

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        spec = worker_group.spec
        envs = {
            worker.local_rank: worker_env(
                worker_group,
                worker,
                self._base_env,
                restart_count=self._restart_count,
                max_restarts=self._max_restarts,
                token=self._token,
            )
            for worker in worker_group.workers
        }
        context = self._pcontext = create_context(
            spec.role,
            self._program,
            {worker.local_rank: with_macros(spec.args, worker.local_rank) for worker in worker_group.workers},
            envs,
            self._logs_specs,
            waiter=self._waiter,
            base_env=self._base_env,
            cwd=self._cwd,
            token=self._token,
            cgroup=self._cgroup,
            owns_descendants=self._owns_descendants,
            on_exit=self._worker_exited,
        )
        self._early_exits = []
        try:
            context.start()
            self._tell_started(worker_group, context)
        except OSError:
            context.stop(signal.SIGTERM, self._grace_deadline())
            raise
        finally:
            self._tell_early_exits(worker_group)
        return context.pids()

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(signal.SIGTERM, max(0.0, self._grace_deadline() - time.monotonic()))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        context = self._pcontext
        if context is None:
            return RunResult(WorkerState.UNKNOWN)
        if context.failed():
            # At once: the others must not wait for a lost peer while it is decided what comes next.
            context.stop(signal.SIGTERM, self._grace_deadline())
        result = context.poll()
        if result is None:
            return RunResult(WorkerState.HEALTHY)
        rank_of = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        if result.is_failed():
            failures = {rank_of[local]: failure for local, failure in result.failures.items()}
            return RunResult(WorkerState.FAILED, failures=failures)
        values = {rank_of[local]: value for local, value in result.return_values.items()}
        return RunResult(WorkerState.SUCCEEDED, return_values=values)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: float = 30) -> None:
        if self._pcontext is not None:
            self._pcontext.close(death_sig, timeout)

    def _own_failures(self) -> Mapping[int, ProcessFailure]:
        found = self._pcontext.failures if self._pcontext is not None else {}
        rank_of = {worker.local_rank: worker.global_rank for worker in self._worker_group.workers}
        return {rank_of[local]: failure for local, failure in found.items()}

    def _hasten_stop(self, request: StopRequest) -> None:
        if self._pcontext is not None:
            self._pcontext.stop(request.signal, request.deadline)

    def _tell_started(self, group: WorkerGroup, context: PContext) -> None:
        if self._coordinated is None:
            return
        starts = []
        for worker in group.workers:
            child = context.children[worker.local_rank]
            starts.append(
                WorkerStart(
                    local_rank=worker.local_rank,
                    rank=worker.global_rank,
                    role_rank=worker.role_rank,
                    pid=child.pid,
                    start_time=child.identity.start_time,
                    started_at=child.started_at,
                    log_dir=str(Path(context.error_files[worker.local_rank]).parent),
                )
            )
        self._coordinated.on_workers_started(group.round, starts)

    def _tell_early_exits(self, group: WorkerGroup) -> None:
        early_exits, self._early_exits = self._early_exits or (), None
        for exit_ in early_exits:
            assert self._coordinated is not None
            self._coordinated.on_worker_exit(group.round, exit_)

    def _worker_exited(self, local_rank: int, info: ExitInfo, torn_down: bool) -> None:
        group = self._worker_group
        worker, context = group.workers[local_rank], self._pcontext
        log.info("worker ended: rank %d, %s", worker.global_rank, info.summary)
        if self._coordinated is None or context is None:
            return
        exit_ = WorkerExit(
            local_rank=local_rank,
            rank=worker.global_rank,
            pid=context.children[local_rank].pid,
            exit_code=info.exit_code,
            signal=info.signal,
            torn_down=torn_down,
        )
        if self._early_exits is None:
            self._coordinated.on_worker_exit(group.round, exit_)
        else:
            self._early_exits.append(exit_)
