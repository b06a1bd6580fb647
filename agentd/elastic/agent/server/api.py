"""Agents: `ElasticAgent`, and `SimpleElasticAgent` to build one's own on.

An agent belongs to the thread that calls `run`. All its waiting is `Waiter.wait`, so that a stop, a dead
worker or a message ends any wait at once; `monitor_interval` is only the longest time between two looks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentd.api.states import WorkerState
from agentd.elastic.agent.server import ranks
from agentd.elastic.agent.server.decisions import AloneDecisions, Decisions, SharedDecisions
from agentd.elastic.agent.server.recording import GroupRecorder
from agentd.elastic.agent.server.spec import RunResult, Worker, WorkerGroup, WorkerSpec
from agentd.elastic.agent.server.stopping import StopControl, StopRequest, StopRequested
from agentd.elastic.metrics import prof
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.multiprocessing.signals import SignalException, handling, signals_to_handle
from agentd.elastic.rendezvous.api import RendezvousGracefulExitError
from agentd.elastic.rendezvous.coordinated import (
    AssignedRendezvousInfo,
    AttachedRendezvous,
    CoordinatedRendezvous,
    RunEnded,
    Verdict,
)
from agentd.elastic.utils.store import Store, barrier
from agentd.procs.waiter import Waiter

if TYPE_CHECKING:
    from agentd.elastic.events import Event

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
        """Run the workers to their end, and answer how that was.

        `role` is torch's and changes nothing: the spec names the role. Raises `SignalException` when a signal
        to this process stopped it, `UnkillableWorkers` when the kernel keeps workers that SIGKILL should have
        ended, and whatever rendezvous and start raise.
        """

    @abstractmethod
    def get_worker_group(self, role: str = DEFAULT_ROLE) -> WorkerGroup:
        """The group as it is now. Read only."""


class SimpleElasticAgent(ElasticAgent):
    """The life of a group: rendezvous, start, watch, restart, stop.

    A subclass says what a worker is, by `_start_workers`, `_stop_workers`, `_monitor_workers` and
    `_shutdown`. Those that wait do it in `self._waiter`. The private members have torch's names and
    meanings; docs/extending.md builds an agent on them.
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
        """Make an agent for one run; nothing is started yet.

        `exit_barrier_timeout`: seconds to wait for other agents' workers after success, where the rendezvous
        does not coordinate. `shutdown_timeout`: seconds that workers which are stopped may take before they
        are killed. `signals` stop the agent when `run` is on the main thread; by default those of torch.
        `waiter`: given, the agent lives in it and leaves it open.
        """
        self._worker_group = WorkerGroup(spec)
        self._max_restarts = spec.max_restarts
        self._remaining_restarts = spec.max_restarts
        self._exit_barrier_timeout = exit_barrier_timeout
        self._shutdown_timeout = shutdown_timeout
        self._total_execution_time = 0
        """Whole seconds that `run` has taken."""
        self._in_exit_barrier = False
        self._running = threading.Lock()
        self._signals = signals
        self._given_waiter = waiter
        self._live_waiter = waiter
        self._stops = StopControl(shutdown_timeout, self._hasten_stop, self._now)
        self._recorder = GroupRecorder(spec)
        self._open_round: int | None = None  # the round that may have processes here
        handler = spec.rdzv_handler
        self._coordinated = handler if isinstance(handler, CoordinatedRendezvous) else None
        self._decisions: Decisions = (
            SharedDecisions(handler, self._coordinated)
            if self._coordinated is not None
            else AloneDecisions(spec, self._exit_barrier, self._stops.foreign_code, self._now)
        )

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

    @prof
    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this agent runs already, on another thread: make one agent for each")
        try:
            return self._run_and_record(role)
        finally:
            self._running.release()

    def get_event_succeeded(self) -> Event:
        """The event that `run` came back, as torch's launchers record it; the agent has recorded its own."""
        return self._recorder.agent_event("SUCCEEDED", self._total_execution_time)

    def get_event_failed(self) -> Event:
        """The event that `run` raised, with the traceback of the exception that is being handled."""
        return self._recorder.agent_event("FAILED", self._total_execution_time, traceback.format_exc())

    def _own_failures(self) -> Mapping[int, ProcessFailure]:
        """By global rank, those of the newest round that failed by themselves, also if that was in doubt."""
        return {}

    # The life of the group.

    def _run_and_record(self, role: str) -> RunResult:
        began = self._now()
        try:
            result = self._run_in_waiter(role)
        except Exception:
            self._total_execution_time = int(self._now() - began)
            self._recorder.agent_ended(None, self._total_execution_time, traceback.format_exc())
            raise
        self._total_execution_time = int(self._now() - began)
        self._record_end(result)
        return result

    def _run_in_waiter(self, role: str) -> RunResult:
        signals = signals_to_handle() if self._signals is None else self._signals
        waiter = self._waiter
        try:
            with handling(signals, self._stops.on_signal), waiter.woken_by_signals():
                waiter.add_pump(self._stops.pump)
                self._attach_rendezvous()
                return self._run_and_clean_up(role)
        finally:
            waiter.remove_pump(self._stops.pump)
            if self._given_waiter is None:
                self._live_waiter = None
                waiter.close()

    def _run_and_clean_up(self, role: str) -> RunResult:
        group = self._worker_group
        try:
            return self._invoke_run(role)
        except RunEnded as ended:
            group.state = ended.state
            return RunResult(ended.state, failures=ended.failures, reason=ended.reason)
        except RendezvousGracefulExitError as error:
            log.info("not needed in this run: %s", error)
            return RunResult(WorkerState.SUCCEEDED)
        except (StopRequested, SignalException) as stop:
            if isinstance(stop, SignalException) and self._stops.request is None:
                self._stops.put(None, stop.sigval, from_signal=True)
        finally:
            self._end_round_for_good()
        group.state = WorkerState.STOPPED
        request = self._stops.request
        signalled = request.as_error() if request else None
        if signalled is not None:
            raise signalled
        return RunResult(WorkerState.STOPPED, failures=self._own_failures())

    def _invoke_run(self, role: str) -> RunResult:
        """Rounds, one after another, until the run ends."""
        group = self._worker_group
        self._initialize_workers(group)
        while True:
            result = self._monitor_workers(group)
            group.state = result.state
            self._recorder.step_metrics(result.state, self._remaining_restarts)
            if result.state is WorkerState.SUCCEEDED:
                if self._decisions.done(group.round) is Verdict.END:
                    return result
                self._restart_workers(group)
            elif result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
                verdict = self._decisions.failed(group.round, result, self._remaining_restarts)
                if verdict is Verdict.END:
                    self._stop_round(group)
                    group.state = WorkerState.FAILED
                    return replace(result, state=WorkerState.FAILED)
                # Where the rendezvous counts, its next round brings the true number.
                self._remaining_restarts = max(0, self._remaining_restarts - 1)
                self._restart_workers(group)
            elif result.state is not WorkerState.HEALTHY:
                raise RuntimeError(f"worker group {group.spec.role!r} is in state {result.state}")
            elif self._decisions.round_over():
                self._restart_workers(group)
            else:
                # Last, not first: what happened during the start is not announced again.
                self._waiter.wait(self._next_look())

    def _next_look(self) -> float | None:
        """When the workers are looked at again though nothing has happened that the waiter knows of."""
        return self._now() + self._worker_group.spec.monitor_interval

    @prof
    def _initialize_workers(self, worker_group: WorkerGroup) -> None:
        """Meet the others and start the workers."""
        while True:
            self._stops.check()
            self._rendezvous(worker_group)
            # From here on the others count on this agent: whatever comes now, they hear that it is gone.
            self._open_round = worker_group.round
            self._stops.check()
            try:
                ids = self._start_workers(worker_group)
            except OSError as error:
                if self._decisions.not_started(worker_group.round, error) is Verdict.END:
                    raise
                self._stop_round(worker_group)
                continue
            for worker in worker_group.workers:
                worker.id = ids[worker.local_rank]
            worker_group.state = WorkerState.HEALTHY
            self._recorder.started(worker_group, self._restart_count)
            return

    @prof
    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        """Stop what runs of the round, then begin another."""
        self._stop_round(worker_group)
        for worker in worker_group.workers:
            worker.id = None  # what it named is gone
        worker_group.state = WorkerState.STOPPED
        self._initialize_workers(worker_group)

    @prof
    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Meet the others of the run and take a place among them."""
        spec = worker_group.spec
        with self._timed(self._recorder.rendezvous):
            info = self._decisions.next_rendezvous()
        if isinstance(info, AssignedRendezvousInfo):
            place = info.assignment
            if self._coordinated is not None:
                self._max_restarts = place.max_restarts
                self._remaining_restarts = place.max_restarts - place.restart_count
            worker_group.round, worker_group.store = place.round, None
            workers = ranks.workers_from(ranks.assigned_bases(place), spec.local_world_size)
        else:
            worker_group.round += 1
            worker_group.store = info.store
            with self._timed(self._recorder.ranks_assigned):
                workers = self._assign_worker_ranks(info.store, info.rank, info.world_size, spec)
        worker_group.workers = workers
        worker_group.group_rank = info.rank
        worker_group.group_world_size = info.world_size
        worker_group.master_addr = spec.master_addr or info.bootstrap_store_info.master_addr
        worker_group.master_port = spec.master_port or info.bootstrap_store_info.master_port

    @prof
    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """Agree with the other agents, through the store, on who is which rank."""
        if os.environ.get(IDENTICAL_VARIABLE) == "1":
            bases = ranks.identical_bases(group_rank, group_world_size, spec.local_world_size)
        else:
            with self._stops.foreign_code():
                bases = ranks.exchanged_bases(store, group_rank, group_world_size, spec, self._waiter)
        return ranks.workers_from(bases, spec.local_world_size)

    def _exit_barrier(self) -> None:
        """Wait for the other agents' workers to succeed; whoever does not come is not waited for longer."""
        group = self._worker_group
        if group.store is None or group.group_world_size is None:
            return
        self._in_exit_barrier = True
        try:
            with self._stops.foreign_code():
                timeout_s = self._exit_barrier_timeout
                barrier(
                    group.store, group.group_world_size, TERMINAL_STATE_KEY, timeout_s, waiter=self._waiter
                )
        except SignalException:
            raise
        except Exception as error:  # noqa: BLE001  our workers did succeed, whatever becomes of the others
            log.warning("exit barrier: %s", error)
        finally:
            self._in_exit_barrier = False

    @property
    def _restart_count(self) -> int:
        """Restarts so far: TORCHELASTIC_RESTART_COUNT."""
        return self._max_restarts - self._remaining_restarts

    # The end of a round, and of all.

    def _stop_round(self, worker_group: WorkerGroup) -> None:
        with self._stops.settled():
            self._stop_workers(worker_group)
            self._tell_round_gone()

    def _end_round_for_good(self) -> None:
        request = self._stops.request
        with self._stops.settled():
            if request is None:
                self._shutdown(timeout=self._shutdown_timeout)
            else:
                grace_s = max(0.0, request.deadline - self._now())
                self._shutdown(signal.Signals(request.signal), timeout=grace_s)
            self._tell_round_gone()

    def _tell_round_gone(self) -> None:
        gone, self._open_round = self._open_round, None
        if gone is None:
            return
        request = self._stops.request
        # Who signals this process means the whole node, its workers too: their ends are no failures.
        if request is None or request.from_signal is None:
            self._decisions.failed_late(gone, self._own_failures())
        self._decisions.gone(gone)

    def _record_end(self, result: RunResult) -> None:
        group, restarts = self._worker_group, self._restart_count
        self._recorder.ended(group, result, restarts, self._total_execution_time)
        self._recorder.agent_ended(result, self._total_execution_time)
        self._recorder.end_metrics(result, self._remaining_restarts, self._max_restarts)

    # Waiting.

    def _attach_rendezvous(self) -> None:
        handler = self._worker_group.spec.rdzv_handler
        if isinstance(handler, AttachedRendezvous):
            handler.attach(self._worker_group.spec, self._waiter, self.request_stop)

    def _grace_deadline(self) -> float:
        """Until when, on the waiter's clock, workers that are stopped now may take."""
        return self._stops.grace_deadline()

    def _now(self) -> float:
        return time.monotonic() if self._live_waiter is None else self._live_waiter.now()

    @property
    def _waiter(self) -> Waiter:
        """What the agent, and its rendezvous handler if it coordinates, wait in."""
        if self._live_waiter is None:
            self._live_waiter = Waiter()
        return self._live_waiter

    @contextlib.contextmanager
    def _timed(self, record: Callable[[WorkerGroup, int], object]) -> Iterator[None]:
        began = self._now()
        try:
            yield
        finally:
            record(self._worker_group, round((self._now() - began) * 1000))
