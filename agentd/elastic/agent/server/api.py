"""Agents: `ElasticAgent`, and `SimpleElasticAgent` to build one's own on.

An agent belongs to the thread that calls `run`. All its waiting is `Waiter.wait`, so that a stop, a dead
worker or a message ends any wait at once; `monitor_interval` is only the longest time between two looks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentd.api.states import WorkerState
from agentd.elastic.agent.server import ranks
from agentd.elastic.agent.server.spec import RunResult, Worker, WorkerGroup, WorkerSpec
from agentd.elastic.agent.server.stopping import (
    StopBox,
    StopRequest,
    StopRequested,
    handling,
    signals_to_handle,
)
from agentd.elastic.multiprocessing.api import SignalException
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.rendezvous.api import RendezvousGracefulExitError, RendezvousInfo
from agentd.elastic.rendezvous.coordinated import (
    AssignedRendezvousInfo,
    CoordinatedRendezvous,
    Verdict,
)
from agentd.elastic.utils.store import Store, barrier
from agentd.procs.waiter import Waiter

__all__ = [
    "ElasticAgent",
    "RunResult",
    "SimpleElasticAgent",
    "StopRequested",
    "Worker",
    "WorkerGroup",
    "WorkerSpec",
    "WorkerState",
]

log = logging.getLogger(__name__)

DEFAULT_ROLE = "default"
TERMINAL_STATE_KEY = "torchelastic/agent/terminal_state"
IDENTICAL_VARIABLE = "TORCH_ELASTIC_WORKER_IDENTICAL"


class ElasticAgent(ABC):
    """Starts the workers of a node, watches them, and restarts them as one group."""

    @abstractmethod
    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Run the workers to their end.

        Raises `SignalException` when a signal to this process stopped it.
        """

    @abstractmethod
    def get_worker_group(self, role: str = DEFAULT_ROLE) -> WorkerGroup:
        """The group as it is now. Read only."""


class SimpleElasticAgent(ElasticAgent):
    """The life of a group: rendezvous, start, watch, restart, stop.

    A subclass says what a worker is, by `_start_workers`, `_stop_workers`, `_monitor_workers` and
    `_shutdown`. Those that wait do it in `self._waiter`.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        exit_barrier_timeout: float = 300,
        shutdown_timeout: float = 30,
        *,
        waiter: Waiter | None = None,
        signals: Sequence[signal.Signals] | None = None,
    ) -> None:
        """`signals` stop the agent when `run` is on the main thread; by default those of torch."""
        self._worker_group = WorkerGroup(spec)
        self._remaining_restarts = spec.max_restarts
        self._exit_barrier_timeout = exit_barrier_timeout
        self._shutdown_timeout = shutdown_timeout
        self._restart_count = 0
        self._max_restarts = spec.max_restarts
        self._signals = signals
        self._given_waiter = waiter
        self._live_waiter = waiter
        handler = spec.rdzv_handler
        self._coordinated = handler if isinstance(handler, CoordinatedRendezvous) else None
        self._stops = StopBox(shutdown_timeout)
        self._seen_stop: StopRequest | None = None
        self._open_round: int | None = None  # the round that may have processes here
        self._failed_round: int | None = None  # the round whose failure here was told
        self._settling = False  # workers are being stopped: a stop shortens that and interrupts nothing
        self._in_foreign_wait = False  # code that knows no Waiter runs: only an exception can end it
        self._next_look = 0.0

    # What a subclass provides.

    @abstractmethod
    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start a worker for each local rank; answers their ids by local rank."""

    @abstractmethod
    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """Stop all workers of the round, which may take until `self._grace_deadline()`; leave nothing.

        Called for workers that run, that ended, that were never started.
        """

    @abstractmethod
    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """How the workers are, without waiting."""

    @abstractmethod
    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: float = 30) -> None:
        """Give back everything, workers first. Called at every end of `run`, also twice."""

    def _hasten_stop(self, request: StopRequest) -> None:
        """A stop came, or was shortened, while workers are being stopped. Called from inside the wait."""

    # What users call.

    def get_worker_group(self, role: str = DEFAULT_ROLE) -> WorkerGroup:
        return self._worker_group

    def request_stop(self, grace: float | None = None, signum: int = signal.SIGTERM) -> None:
        """Stop the workers and end `run`, which answers with the state STOPPED.

        Callable from any thread, callback or signal handler, at any moment, and again to shorten the grace
        (`None`: the shutdown timeout). Asked before `run`, that ends at once.
        """
        self._stops.put(grace, signum)
        if self._live_waiter is not None:
            self._live_waiter.wake()

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        signals = signals_to_handle() if self._signals is None else self._signals
        waiter = self._waiter
        try:
            with handling(signals, self._on_signal), waiter.woken_by_signals():
                waiter.add_pump(self._stop_pump)
                return self._run_and_clean_up(role)
        finally:
            waiter.remove_pump(self._stop_pump)
            if self._given_waiter is None:
                self._live_waiter = None
                waiter.close()

    def _own_failures(self) -> Mapping[int, ProcessFailure]:
        """By global rank, those of the newest round that failed by themselves, also if that was in doubt."""
        return {}

    # The life of the group.

    def _run_and_clean_up(self, role: str) -> RunResult:
        try:
            return self._invoke_run(role)
        except RendezvousGracefulExitError as error:
            log.info("not needed in this run: %s", error)
            return RunResult(WorkerState.SUCCEEDED)
        except (StopRequested, SignalException) as stop:
            if isinstance(stop, SignalException) and self._stops.request is None:
                self._stops.put(None, stop.sigval, from_signal=True)
        finally:
            self._end_round_for_good()
        self._worker_group.state = WorkerState.STOPPED
        request = self._stops.request
        signalled = request.as_error() if request else None
        if signalled is not None:
            raise signalled
        return RunResult(WorkerState.STOPPED)

    def _invoke_run(self, role: str) -> RunResult:
        """Rounds, one after another, until the run ends."""
        group = self._worker_group
        self._initialize_workers(group)
        while True:
            result = self._monitor_workers(group)
            group.state = result.state
            if result.state is WorkerState.SUCCEEDED:
                if self._all_succeeded():
                    return result
                self._restart_workers(group)
            elif result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
                if not self._may_restart(result):
                    self._stop_round(group)
                    group.state = WorkerState.FAILED
                    return replace(result, state=WorkerState.FAILED)
                self._restart_workers(group)
            elif result.state is not WorkerState.HEALTHY:
                raise RuntimeError(f"worker group {group.spec.role!r} is in state {result.state}")
            elif self._round_is_over():
                self._restart_workers(group)
            else:
                # Last, not first: what happened during the start is not announced again.
                self._waiter.wait(time.monotonic() + group.spec.monitor_interval)

    def _initialize_workers(self, worker_group: WorkerGroup) -> None:
        """Meet the others and start the workers."""
        while True:
            self._check_stop()
            self._rendezvous(worker_group)
            self._check_stop()
            self._open_round = worker_group.round
            try:
                ids = self._start_workers(worker_group)
            except OSError as error:
                if not self._may_start_again(error):
                    raise
                self._stop_round(worker_group)
                continue
            for worker in worker_group.workers:
                worker.id = ids[worker.local_rank]
            worker_group.state = WorkerState.HEALTHY
            return

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        """Stop what runs of the round, then begin another."""
        self._stop_round(worker_group)
        worker_group.state = WorkerState.STOPPED
        self._initialize_workers(worker_group)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Meet the others of the run and take a place among them."""
        spec = worker_group.spec
        info = self._next_rendezvous()
        if isinstance(info, AssignedRendezvousInfo):
            place = info.assignment
            workers = ranks.workers_from(ranks.assigned_bases(place), spec.local_world_size)
            self._restart_count, self._max_restarts = place.restart_count, place.max_restarts
            worker_group.round, worker_group.store = place.round, None
        else:
            workers = self._assign_worker_ranks(info.store, info.rank, info.world_size, spec)
            self._restart_count = spec.max_restarts - self._remaining_restarts
            worker_group.round += 1
            worker_group.store = info.store
        worker_group.workers = workers
        worker_group.group_rank = info.rank
        worker_group.group_world_size = info.world_size
        worker_group.master_addr = spec.master_addr or info.bootstrap_store_info.master_addr
        worker_group.master_port = spec.master_port or info.bootstrap_store_info.master_port

    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """Agree with the other agents, through the store, on who is which rank."""
        if os.environ.get(IDENTICAL_VARIABLE) == "1":
            bases = ranks.identical_bases(group_rank, group_world_size, spec.local_world_size)
        else:
            with self._foreign_wait():
                bases = ranks.exchanged_bases(store, group_rank, group_world_size, spec, self._waiter)
        return ranks.workers_from(bases, spec.local_world_size)

    def _exit_barrier(self) -> None:
        """Wait for the other agents' workers to succeed; whoever does not come is not waited for longer."""
        group = self._worker_group
        if group.store is None or group.group_world_size is None:
            return
        try:
            with self._foreign_wait():
                timeout_s = self._exit_barrier_timeout
                barrier(group.store, group.group_world_size, TERMINAL_STATE_KEY, timeout_s, self._waiter)
        except SignalException:
            raise
        except Exception as error:  # noqa: BLE001  our workers did succeed, whatever becomes of the others
            log.warning("exit barrier: %s", error)

    # Decisions: by the rendezvous where it coordinates, else alone, as torch does.

    def _all_succeeded(self) -> bool:
        """Whether the run is over, now that all workers here succeeded."""
        if self._coordinated is not None:
            return self._coordinated.on_done(self._worker_group.round) is Verdict.END
        self._exit_barrier()
        return True

    def _may_restart(self, result: RunResult) -> bool:
        if self._coordinated is not None:
            self._failed_round = self._worker_group.round
            verdict = self._coordinated.on_failure(self._worker_group.round, result.failures, result.reason)
            return verdict is Verdict.RESTART
        if self._remaining_restarts == 0:
            return False
        self._remaining_restarts -= 1
        return True

    def _may_start_again(self, error: OSError) -> bool:
        if self._coordinated is None:
            return False
        self._failed_round = self._worker_group.round
        return self._coordinated.on_failure(self._worker_group.round, {}, str(error)) is Verdict.RESTART

    def _round_is_over(self) -> bool:
        """Whether the running round must go, for a reason that costs no restart."""
        if self._coordinated is not None:
            return self._coordinated.round_over()
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + self._worker_group.spec.monitor_interval
        with self._foreign_wait():
            return self._worker_group.spec.rdzv_handler.num_nodes_waiting() > 0

    # Waiting and stopping.

    def _next_rendezvous(self) -> RendezvousInfo:
        handler = self._worker_group.spec.rdzv_handler
        if self._coordinated is not None:
            return handler.next_rendezvous()
        with self._foreign_wait():
            return handler.next_rendezvous()

    def _stop_round(self, worker_group: WorkerGroup) -> None:
        with self._settled():
            self._stop_workers(worker_group)
            self._tell_late_failure()
            self._tell_round_gone()

    def _end_round_for_good(self) -> None:
        request = self._stops.request
        with self._settled():
            if request is None:
                self._shutdown(timeout=self._shutdown_timeout)
            else:
                grace_s = max(0.0, request.deadline - time.monotonic())
                self._shutdown(signal.Signals(request.signal), timeout=grace_s)
            self._tell_late_failure()
            self._tell_round_gone()

    def _tell_late_failure(self) -> None:
        round_, request = self._open_round, self._stops.request
        if self._coordinated is None or round_ is None or round_ == self._failed_round:
            return
        if request is not None and request.from_signal is not None:
            # Who signals this process means the whole node, its workers too.
            return
        if failures := self._own_failures():
            self._failed_round = round_
            self._coordinated.on_late_failure(round_, failures)

    def _tell_round_gone(self) -> None:
        gone, self._open_round = self._open_round, None
        if gone is not None and self._coordinated is not None:
            self._coordinated.on_round_gone(gone)

    def _grace_deadline(self) -> float:
        """Until when workers that are stopped now may take."""
        usual = time.monotonic() + self._shutdown_timeout
        request = self._stops.request
        return usual if request is None else min(usual, request.deadline)

    @property
    def _waiter(self) -> Waiter:
        """What the agent, and its rendezvous handler if it coordinates, wait in."""
        if self._live_waiter is None:
            self._live_waiter = Waiter()
        return self._live_waiter

    def _check_stop(self) -> None:
        if self._stops.request is not None:
            raise StopRequested

    def _stop_pump(self, _now: float) -> None:
        request = self._stops.request
        if request is None or request == self._seen_stop:
            return
        if not self._settling:
            raise StopRequested
        self._seen_stop = request
        self._hasten_stop(request)

    def _on_signal(self, signum: int) -> None:
        self._stops.put(None, signum, from_signal=True)
        request = self._stops.request
        error = request.as_error() if request else None
        if self._in_foreign_wait and not self._settling and error is not None:
            raise error

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        before, self._settling = self._settling, True
        try:
            yield
        finally:
            self._settling = before

    @contextlib.contextmanager
    def _foreign_wait(self) -> Iterator[None]:
        self._in_foreign_wait = True
        try:
            yield
        finally:
            self._in_foreign_wait = False
