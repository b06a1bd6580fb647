"""The host's rendezvous: every decision is a message to agentd, which asks the hub.

All waiting is the agent's own `Waiter`, in which the link to agentd also lives; a stop of the agent passes
through as `StopRequested`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from agentd.core.assignment import Assignment
from agentd.core.contact import NO_CONTACT, Contact
from agentd.core.moments import utc
from agentd.elastic.multiprocessing.errors.failure import NOT_AVAILABLE, ProcessFailure
from agentd.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo
from agentd.elastic.rendezvous.coordinated import (
    AssignedRendezvousInfo,
    Verdict,
    WorkerExit,
    WorkerStart,
)
from agentd.elastic.utils.ports import RoundPort
from agentd.host.roundfile import RoundFile
from agentd.host.wire import (
    Done,
    Exited,
    Failed,
    FailedWorker,
    HostSpec,
    Isolated,
    Ready,
    ReportFrame,
    Started,
    StartedWorker,
    StopRound,
)
from agentd.procs.boottime import boottime
from agentd.procs.exits import exit_of
from agentd.procs.waiter import Waiter


class HostRendezvous(RendezvousHandler):
    """Forms rounds through agentd. See `CoordinatedRendezvous` for when the agent calls what."""

    def __init__(
        self,
        spec: HostSpec,
        group_dir: str,
        waiter: Waiter,
        report: Callable[[ReportFrame], object],
        contact: Contact = NO_CONTACT,
    ) -> None:
        self._spec = spec
        self._round_file = RoundFile(
            group_dir, run_id=spec.run_id, incarnation=spec.incarnation, node_id=spec.node_id
        )
        self._contact = contact
        self._running = False  # of the newest round there may be processes here
        self._failed = False  # its workers are being stopped already
        self._waiter = waiter
        self._report = report
        self._place: Assignment | None = None
        self._stop_round = 0
        self._port = RoundPort()
        self.workers: dict[int, StartedWorker] = {}
        """The running ones, by global rank."""
        self.preload_problem: Callable[[], str] = str
        """Why not all workers of the newest round were forked; empty: they were, or nobody wished it."""
        if spec.on_isolation == "stop":
            waiter.add_pump(self._mind_contact)

    # What agentd says.

    def on_assigned(self, place: Assignment) -> None:
        """A round was formed with this group in it."""
        if place.round > self._round:
            self._place = place

    def on_stop_round(self, frame: StopRound) -> None:
        """The round, and every older one, must go."""
        self._stop_round = max(self._stop_round, frame.round)

    def on_contact(self, contact: Contact) -> None:
        """The hub has answered, or wants a round gone."""
        self._contact = contact
        if self._running:
            self._write_round_file()

    # What the agent asks.

    def get_backend(self) -> str:
        return "agentd"

    def get_run_id(self) -> str:
        return self._spec.run_id

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Leaving is not closing: only the hub ends a run."""

    def num_nodes_waiting(self) -> int:
        return int(self.round_over())

    def shutdown(self) -> bool:
        self._waiter.remove_pump(self._mind_contact)
        self._port.close()
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        gone, port = self._round, self._port.next()
        self.workers.clear()
        self._report(Ready(round=gone, master_port=port))
        self._waiter.wait_until(lambda: self._round > gone, None)
        place = self._place
        assert place is not None
        self._running, self._failed = True, False
        self._write_round_file()
        return AssignedRendezvousInfo(place)

    def on_workers_started(self, round: int, workers: Sequence[WorkerStart]) -> None:
        started = tuple(_started(worker) for worker in workers)
        self.workers = {worker.rank: worker for worker in started}
        restarts = self._place.restart_count if self._place else 0
        problem = self.preload_problem()
        self._report(Started(round=round, workers=started, restart_count=restarts, preload_problem=problem))

    def on_worker_exit(self, round: int, worker: WorkerExit) -> None:
        self.workers.pop(worker.rank, None)
        exited = Exited(
            round=round,
            local_rank=worker.local_rank,
            rank=worker.rank,
            pid=worker.pid,
            exit_code=worker.exit_code,
            signal=worker.signal,
            torn_down=worker.torn_down,
        )
        self._report(exited)

    def on_failure(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> Verdict:
        self._failed = True
        self._report_failed(round, failures, reason)
        # Restart or end is the hub's word; an end arrives as a stop of the agent.
        self._waiter.wait_until(self.round_over, None)
        return Verdict.RESTART

    def on_late_failure(self, round: int, failures: Mapping[int, ProcessFailure]) -> None:
        self._report_failed(round, failures, "")

    def on_done(self, round: int) -> Verdict:
        self.on_round_gone(round)
        self._report(Done(round=round))
        return Verdict.END

    def round_over(self) -> bool:
        return self._stop_round >= self._round > 0

    def wakes_waiter(self) -> None:
        """What ends a round is a frame of the link, or the time of a pump: both end the wait."""

    def on_round_gone(self, round: int) -> None:
        """agentd is told by `ready`, which also offers the next port, or by the last report."""
        self._running = False
        self._round_file.remove()

    @property
    def _round(self) -> int:
        return self._place.round if self._place else 0

    def _report_failed(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> None:
        failed = [_failed(rank, failure, self._log_dir(round, failure)) for rank, failure in failures.items()]
        failed.sort(key=lambda worker: -worker.age_s)
        self._report(Failed(round=round, failures=tuple(failed), reason=reason))

    def _write_round_file(self) -> None:
        self._round_file.write(self._round, self._contact.until(self._round))

    def _mind_contact(self, now: float) -> float | None:
        """Stop the round by itself once the contact has run out: agentd may be frozen, or gone."""
        if not self._running or self._failed or self.round_over() or self._contact is NO_CONTACT:
            return None
        left = self._contact.until(self._round) - boottime()
        if left > 0:
            return now + left
        since = time.time() - (boottime() - self._contact.sent_at)
        self._report(Isolated(round=self._round, reason=isolation_sentence(since)))
        self._stop_round = self._round
        return now

    def _log_dir(self, round: int, failure: ProcessFailure) -> str:
        return f"{self._spec.log_root}/round_{round}/{failure.local_rank}"


def isolation_sentence(since: float) -> str:
    """Why a node stops its round by itself. `since`: seconds since the epoch."""
    return f"no contact with the hub since {utc(since)}, and on_isolation is stop"


def _started(worker: WorkerStart) -> StartedWorker:
    return StartedWorker(**{field.name: getattr(worker, field.name) for field in fields(StartedWorker)})


def _failed(rank: int, failure: ProcessFailure, log_dir: str) -> FailedWorker:
    ended = exit_of(failure.exitcode)
    return FailedWorker(
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
        age_s=failure.age_s(),
    )
