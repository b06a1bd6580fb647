"""`LocalElasticAgent`: the workers are processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
import string
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from agentd.api.states import WorkerState
from agentd.elastic import metrics
from agentd.elastic.agent.server.api import (
    DEFAULT_ROLE,
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
)
from agentd.elastic.agent.server.health.serving import health_checked
from agentd.elastic.agent.server.health_check_server import PORT_VARIABLE as TORCHELASTIC_HEALTH_CHECK_PORT
from agentd.elastic.agent.server.health_check_server import HealthCheckServer
from agentd.elastic.agent.server.preloading import Preloading
from agentd.elastic.agent.server.spec import Worker
from agentd.elastic.agent.server.stopping import StopRequest
from agentd.elastic.agent.server.telling import RoundTeller
from agentd.elastic.agent.server.uninterruptible import (
    TIMEOUT_VARIABLE as TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT,
)
from agentd.elastic.agent.server.uninterruptible import StateWatch, timeout_from
from agentd.elastic.agent.server.watchdog import ENABLE_VARIABLE as TORCHELASTIC_ENABLE_FILE_TIMER
from agentd.elastic.agent.server.watchdog import FILE_VARIABLE as TORCHELASTIC_TIMER_FILE
from agentd.elastic.agent.server.watchdog import Watchdog
from agentd.elastic.agent.server.worker_env import with_macros, worker_env
from agentd.elastic.metrics import prof
from agentd.elastic.multiprocessing import GroupOwner, LogsSpecs, PContext, RunProcsResult, create_context
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.rendezvous.coordinated import WakingRendezvous
from agentd.procs.lineage import lineage
from agentd.procs.procfs import read_stat
from agentd.procs.waiter import Waiter

__all__ = [
    "TORCHELASTIC_ENABLE_FILE_TIMER",
    "TORCHELASTIC_HEALTH_CHECK_PORT",
    "TORCHELASTIC_TIMER_FILE",
    "TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT",
    "LocalElasticAgent",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

SIGN_OF_LIFE_S = 5.0
"""Longest time between two signs of life while the agent waits for something that may take long."""


class LocalElasticAgent(SimpleElasticAgent):
    """Runs a function or a program once for each local rank, each in a process and session of its own.

    Workers get SIGTERM and `shutdown_timeout` seconds, then SIGKILL; they die at once if this process does.
    Everything they started is ended with them, before the next round begins.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs,
        start_method: str = "spawn",
        exit_barrier_timeout: float = 300,
        log_line_prefix_template: str | None = None,
        shutdown_timeout: float = 30,
        health_check_server: HealthCheckServer | None = None,
        uninterruptible_state_timeout: float | None = None,
        *,
        waiter: Waiter | None = None,
        signals: Sequence[signal.Signals] | None = None,
        base_env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        token: str | None = None,
        cgroup: str = "",
        owns_descendants: bool = False,
    ) -> None:
        """The arguments up to `uninterruptible_state_timeout` are torch's.

        `logs_specs`: where workers write. `start_method` of functions: spawn, fork or forkserver.
        `log_line_prefix_template`: of lines copied to the console; `${role_name}`, `${rank}` and
        `${local_rank}` are replaced. `health_check_server`: one that the caller made, in place of the one
        that TORCHELASTIC_HEALTH_CHECK_PORT asks for; the agent starts and stops it.
        `uninterruptible_state_timeout`: seconds after which a worker in the kernel's state D makes the group
        UNHEALTHY, by default TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT, else never.

        `base_env` is what workers share, by default this process' environment; torch's settings that are
        environment variables are looked up in it too. `token` marks the workers and all they start
        (AGENTD_GROUP_TOKEN); one is made if none is given. `cgroup`: a cgroup's folder that holds nothing
        but them. `owns_descendants`: everything that descends from this process belongs to the workers. Only
        for a process that starts nothing else, best a subreaper.
        """
        super().__init__(spec, exit_barrier_timeout, shutdown_timeout, waiter=waiter, signals=signals)
        self._logs_specs = logs_specs
        self._start_method = start_method
        self._log_line_prefix_template = log_line_prefix_template
        self._base_env = os.environ if base_env is None else base_env
        self._cwd = cwd
        self._token = token or os.urandom(16).hex()
        self._cgroup = cgroup
        self._owns_descendants = owns_descendants
        self._health_check_server = health_check_server
        timeout_s = timeout_from(uninterruptible_state_timeout, self._base_env)
        self._state_watch = None if timeout_s is None else StateWatch(timeout_s)
        self._worker_watchdog: Watchdog | None = None
        self._pcontext: PContext | None = None
        self._preloading = Preloading(spec, self._base_env, cwd, self._token) if spec.preload else None
        self._alive_at = time.time()

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        waiter = self._waiter
        # A rendezvous that knows no waiter may keep this thread for long: then a thread answers instead.
        answering = waiter if self._coordinated is not None else None
        with health_checked(
            self._health_check_server, self._base_env, self._get_alive_time, answering
        ) as served:
            if served:
                waiter.add_pump(self._sign_of_life)
            if self._preloading is not None:
                # While the others are met.
                self._preloading.start(waiter)
            try:
                return super().run(role)
            finally:
                waiter.remove_pump(self._sign_of_life)

    @property
    def preload_problem(self) -> str:
        """Why not all workers of the newest round were forked as `preload` wishes; empty: they were."""
        return "" if self._preloading is None else self._preloading.problem

    def signal_workers(self, signum: int, ranks: Collection[int] = ()) -> tuple[int, ...]:
        """Signal workers by global rank, all if none is named; answers those that ran. Not a stop.

        For the agent's own thread: a callback of its waiter.
        """
        if self._pcontext is None:
            return ()
        by_local_rank = {worker.local_rank: worker.global_rank for worker in self._worker_group.workers}
        wanted = {local for local, rank in by_local_rank.items() if not ranks or rank in ranks}
        return tuple(by_local_rank[local] for local in self._pcontext.send_signal(signum, wanted))

    # What a worker is.

    @prof
    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        watchdog = self._worker_watchdog = self._make_watchdog()
        teller = RoundTeller(self._coordinated, worker_group)
        context = self._pcontext = self._make_context(worker_group, watchdog, teller)
        try:
            if watchdog is not None:
                watchdog.start()
            with teller.starting(context):
                context.start()
                if self._preloading is not None:
                    self._preloading.started()
        except Exception:
            context.stop(signal.SIGTERM, self._grace_deadline())
            raise
        return context.pids()

    @prof
    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._close_workers(signal.SIGTERM, max(0.0, self._grace_deadline() - self._now()))

    @prof
    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        context = self._pcontext
        if context is None:
            return RunResult(WorkerState.UNKNOWN)
        if context.failed():
            # At once: the others must not wait for a lost peer while it is decided what comes next.
            context.stop(signal.SIGTERM, self._grace_deadline())
            if self._preloading is not None and self._remaining_restarts:
                self._preloading.stock()
        result = context.poll()
        if result is None:
            return self._unhealthy(context) or RunResult(WorkerState.HEALTHY)
        if self._preloading is not None and not result.is_failed():
            # Before anybody is told that nothing is left here.
            self._preloading.close()
        return self._global(result)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if self._preloading is not None:
            # The next workers are forked while these are stopped; they begin when the round is formed.
            self._preloading.stock()
        super()._restart_workers(worker_group)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: float = 30) -> None:
        try:
            self._close_workers(death_sig, timeout)
        finally:
            if self._preloading is not None:
                self._preloading.close()

    def _close_workers(self, death_sig: signal.Signals, timeout: float) -> None:
        watchdog, self._worker_watchdog = self._worker_watchdog, None
        try:
            if self._pcontext is not None:
                self._pcontext.close(death_sig, timeout)
        finally:
            # After the workers: one that hangs in its end is still watched.
            if watchdog is not None:
                watchdog.stop()

    def _own_failures(self) -> Mapping[int, ProcessFailure]:
        return self._by_rank(self._pcontext.failures if self._pcontext is not None else {})

    def _hasten_stop(self, request: StopRequest) -> None:
        if self._pcontext is not None:
            self._pcontext.stop(request.signal, request.deadline)

    # How workers are started.

    def _make_context(self, group: WorkerGroup, watchdog: Watchdog | None, teller: RoundTeller) -> PContext:
        spec = group.spec
        assert spec.entrypoint is not None
        return create_context(
            spec.role,
            spec.entrypoint,
            {worker.local_rank: with_macros(spec.args, worker.local_rank) for worker in group.workers},
            self._envs(group, watchdog),
            self._logs_specs,
            {worker.local_rank: self._log_line_prefix(worker) for worker in group.workers},
            self._start_method,
            spec.numa_options,
            spec.duplicate_stdout_filters,
            spec.duplicate_stderr_filters,
            owner=self._owner(watchdog, teller),
        )

    def _owner(self, watchdog: Watchdog | None, teller: RoundTeller) -> GroupOwner:
        return GroupOwner(
            waiter=self._waiter,
            base_env=self._base_env,
            cwd=self._cwd,
            token=self._token,
            cgroup=self._cgroup,
            owns_descendants=self._owns_descendants,
            forks=None if self._preloading is None else self._preloading.keeper,
            on_exit=teller.exited,
            explain=watchdog.explain if watchdog is not None else None,
        )

    def _envs(self, group: WorkerGroup, watchdog: Watchdog | None) -> dict[int, dict[str, str]]:
        """What each worker gets over the shared environment."""
        watched = {} if watchdog is None else watchdog.worker_env()
        return {
            worker.local_rank: {
                **worker_env(
                    group,
                    worker,
                    self._base_env,
                    restart_count=self._restart_count,
                    max_restarts=self._max_restarts,
                    token=self._token,
                ),
                **watched,
            }
            for worker in group.workers
        }

    def _log_line_prefix(self, worker: Worker) -> str:
        """As torch: without a template `[<role><local rank>]:`."""
        role = self._worker_group.spec.role
        if self._log_line_prefix_template is None:
            return f"[{role}{worker.local_rank}]:"
        values = {"role_name": role, "rank": worker.global_rank, "local_rank": worker.local_rank}
        return string.Template(self._log_line_prefix_template).safe_substitute(values)

    def _make_watchdog(self) -> Watchdog | None:
        return Watchdog.from_env(
            self._base_env,
            run_id=self._worker_group.spec.rdzv_handler.get_run_id(),
            waiter=self._waiter,
            owns=lambda pid: self._local_rank_of(pid) is not None,
            stacks_dir_of=self._log_dir_of,
            log_event=self._recorder.watchdog,
        )

    def _local_rank_of(self, pid: int) -> int | None:
        """The worker that the process is, descends from, or shares the session with."""
        stat, context = read_stat(pid), self._pcontext
        if stat is None or context is None:
            return None
        family = {stat.session, *lineage(pid)}
        return next((rank for rank, worker in context.pids().items() if worker in family), None)

    def _log_dir_of(self, pid: int) -> str:
        local_rank, context = self._local_rank_of(pid), self._pcontext
        if local_rank is None or context is None:
            return ""
        error_file = context.error_files.get(local_rank, "")
        return str(Path(error_file).parent) if error_file else ""

    # How they are.

    def _next_look(self) -> float | None:
        """None, where all that ends a round is an event: then nothing is looked at in vain."""
        told = isinstance(self._coordinated, WakingRendezvous)
        if told and self._state_watch is None and not metrics.is_listening():
            return None
        return super()._next_look()

    def _unhealthy(self, context: PContext) -> RunResult | None:
        """What torch's check for state D answers; None while all is well, or nobody asked for it."""
        if self._state_watch is None:
            return None
        stuck = self._state_watch.look(context.pids().values(), self._now())
        if not stuck:
            return None
        # Where the rendezvous decides, others may go on without this node.
        self._remaining_restarts = 0
        ranks = ", ".join(
            f"rank {worker.global_rank} (pid {worker.id})"
            for worker in self._worker_group.workers
            if worker.id in stuck
        )
        reason = (
            f"stuck in the kernel (state D): {ranks}. Most often storage or a device does not answer: "
            "see dmesg, and what the process waits for in /proc/PID/stack"
        )
        return RunResult(WorkerState.UNHEALTHY, reason=reason)

    def _global(self, result: RunProcsResult) -> RunResult:
        """The result by global rank."""
        if result.is_failed():
            return RunResult(WorkerState.FAILED, failures=self._by_rank(result.failures))
        return RunResult(WorkerState.SUCCEEDED, return_values=self._by_rank(result.return_values))

    def _by_rank(self, by_local_rank: Mapping[int, T]) -> dict[int, T]:
        rank_of = {worker.local_rank: worker.global_rank for worker in self._worker_group.workers}
        return {rank_of[local_rank]: value for local_rank, value in by_local_rank.items()}

    # How this agent is.

    def _get_alive_time(self) -> float:
        """The last sign of life, in seconds since the epoch: the watchdog's if there is one."""
        if self._stops.in_foreign_code:
            # Somebody else's rendezvous or store, which has a timeout of its own.
            return time.time()
        watchdog = self._worker_watchdog
        return self._alive_at if watchdog is None else watchdog.last_progress_time

    def _sign_of_life(self, now: float) -> float:
        self._alive_at = time.time()
        return now + SIGN_OF_LIFE_S
