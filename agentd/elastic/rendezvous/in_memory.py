"""A rendezvous for many agents of one process: elastic, without a network, deciding for all of them.

    meeting = InMemoryRendezvous("run", min_nodes=2, max_nodes=4)
    agent = LocalElasticAgent(WorkerSpec("trainer", 8, meeting.handler(), entrypoint="train"), ...)

The failure of one agent restarts all and costs one restart; an agent that comes, or that is stopped, restarts
the others at no cost; the run succeeds when all agents' workers have. Call the handler's `shutdown` when the
agent's `run` has ended, as torch's launcher does: the others then go on without it at once.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from agentd.api.states import WorkerState
from agentd.core.assignment import Assignment
from agentd.elastic.rendezvous import meeting as rules
from agentd.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from agentd.elastic.rendezvous.coordinated import (
    AssignedRendezvousInfo,
    RunEnded,
    Verdict,
    WorkerExit,
    WorkerStart,
)
from agentd.elastic.rendezvous.meeting import Beat, Meeting, MemberId, Offer, Rules
from agentd.elastic.utils.ports import RoundPort
from agentd.procs.waiter import Waiter

if TYPE_CHECKING:
    from agentd.elastic.agent.server.spec import WorkerSpec
    from agentd.elastic.multiprocessing.errors import ProcessFailure

__all__ = ["InMemoryRendezvous", "InMemoryRendezvousHandler", "create_rdzv_handler"]

BACKEND = "in-memory"
MASTER_ADDR = "localhost"


class InMemoryRendezvous:
    """Where the agents of one run meet. Thread-safe."""

    def __init__(
        self,
        run_id: str,
        min_nodes: int,
        max_nodes: int | None = None,
        *,
        max_restarts: int | None = None,
        join_timeout: float = 600.0,
        last_call_timeout: float = 5.0,
    ) -> None:
        """Open a meeting; `max_nodes` is `min_nodes` if it is not given.

        `max_restarts` is the budget of the whole run, by default that of the first agent's `WorkerSpec`.
        Seconds: an agent waits `join_timeout` for a round of `min_nodes`, and a round that could form waits
        `last_call_timeout` for more agents, unless it is full or the same ones as before are back.
        """
        most = min_nodes if max_nodes is None else max_nodes
        RendezvousParameters(BACKEND, "", run_id, min_nodes, most)  # refuses senseless numbers
        self.run_id = run_id
        """The run's id, which the workers see."""
        self._takes_budget = max_restarts is None
        self._ids = itertools.count()
        self._lock = threading.Lock()  # held for decisions and wake-ups, never across a wait
        self._meeting = Meeting(
            rules=Rules(
                min_members=min_nodes,
                max_members=most,
                max_restarts=max_restarts or 0,
                join_timeout=join_timeout,
                last_call=last_call_timeout,
            )
        )
        self._watchers: dict[MemberId, Waiter] = {}
        self._handlers: set[MemberId] = set()
        self._port = RoundPort()
        """For rank 0 of the newest round."""

    def handler(self, *, role: str = "default", local_world_size: int = 1) -> InMemoryRendezvousHandler:
        """A handler for one more agent. An agent itself tells its role and size; they are for use without."""
        who = next(self._ids)
        with self._lock:
            self._handlers.add(who)
        return InMemoryRendezvousHandler(self, who, role, local_world_size)

    @property
    def _deserted(self) -> bool:
        """Whether all handlers there were have been shut down."""
        with self._lock:
            return not self._handlers

    @property
    def meeting(self) -> Meeting:
        """How the meeting stands."""
        return self._meeting

    def _change(self, change: Callable[[Meeting, float], Meeting], now: float) -> Meeting:
        """Let something happen, do what follows from it, and wake whom it may concern."""
        with self._lock:
            before = self._meeting
            after = rules.settle(change(before, now), now)
            if rules.ripe(after, now):
                after = rules.form(after, now, MASTER_ADDR, self._port.next())
            elif after.beat is Beat.ENDED or not (after.waiting or after.busy or after.done):
                self._port.close()
            self._meeting = after
            if after != before:
                for waiter in self._watchers.values():
                    waiter.wake()
            return after

    def _take_budget(self, max_restarts: int) -> None:
        with self._lock:
            if self._takes_budget:
                self._takes_budget = False
                known = replace(self._meeting.rules, max_restarts=max_restarts)
                self._meeting = replace(self._meeting, rules=known)

    def _watch(self, who: MemberId, waiter: Waiter) -> None:
        with self._lock:
            self._watchers[who] = waiter

    def _unwatch(self, who: MemberId) -> None:
        """Afterwards the waiter is not touched any more, and may be closed."""
        with self._lock:
            self._watchers.pop(who, None)

    def _forget(self, who: MemberId) -> None:
        with self._lock:
            self._handlers.discard(who)


class InMemoryRendezvousHandler(RendezvousHandler):
    """One agent's access to an `InMemoryRendezvous`. See `CoordinatedRendezvous` for when what is called.

    It waits in the waiter of the agent it is attached to, so that a stop ends the wait.
    """

    def __init__(self, place: InMemoryRendezvous, who: MemberId, role: str, local_world_size: int) -> None:
        self._meet = place
        self._who = who
        self._role = role
        self._local_world_size = local_world_size
        self._waiter: Waiter | None = None
        self._round = 0

    def attach(
        self, spec: WorkerSpec, waiter: Waiter, request_stop: Callable[[float | None], object]
    ) -> None:
        """Serve this agent: its role, its size, its budget if the meeting has none, and its waiter."""
        self._role, self._local_world_size = spec.role, spec.local_world_size
        self._waiter = waiter
        self._meet._take_budget(spec.max_restarts)

    def get_backend(self) -> str:
        """`in-memory`."""
        return BACKEND

    def get_run_id(self) -> str:
        """The meeting's run id."""
        return self._meet.run_id

    def is_closed(self) -> bool:
        """Whether no further round will be formed, because somebody said so or the run has ended."""
        meeting = self._meet.meeting
        return meeting.closed or meeting.beat is Beat.ENDED

    def set_closed(self) -> None:
        """Let no further round be formed. The running one goes on; if it fails, the run has failed."""
        self._happens(lambda meeting, _now: rules.close(meeting))

    def num_nodes_waiting(self) -> int:
        """How many newcomers the next round will have; spares beyond `max_nodes` do not count."""
        return rules.newcomers(self._meet.meeting)

    def shutdown(self) -> bool:
        """Leave. The run of the others goes on; who is the last leaves no run behind."""
        self._leave()
        self._meet._forget(self._who)
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for a round with this agent in it.

        Raises RendezvousTimeoutError when not enough agents come in time, RendezvousClosedError once no
        further round will be, RendezvousGracefulExitError for a spare when the run ends without it.
        """
        offer = Offer(self._role, self._local_world_size, self._now())
        try:
            with self._waits() as waiter:
                # First of all: what happens from here on wakes it.
                self._meet._watch(self._who, waiter)
                self._happens(lambda meeting, now: rules.join(meeting, self._who, offer, now))
                while (place := self._place_in(meeting := self._tick())) is None:
                    waiter.wait(_earliest(rules.due(meeting), rules.gives_up_at(meeting, self._who)))
                if self._waiter is None:
                    self._meet._unwatch(self._who)
        except BaseException:
            self._leave()
            raise
        self._round = place.round
        return AssignedRendezvousInfo(place)

    def on_workers_started(self, round: int, workers: Sequence[WorkerStart]) -> None:
        """Nobody else needs to know."""

    def on_worker_exit(self, round: int, worker: WorkerExit) -> None:
        """Nobody else needs to know."""

    def on_failure(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> Verdict:
        """Count the failure for the whole run, and tell whether it goes on."""
        why = _cause(failures, reason)
        meeting = self._happens(
            lambda meeting, now: rules.fail(meeting, self._who, round, why, failures, now)
        )
        return Verdict.END if meeting.beat is Beat.ENDED else Verdict.RESTART

    def on_late_failure(self, round: int, failures: Mapping[int, ProcessFailure]) -> None:
        """Decided already."""

    def on_done(self, round: int) -> Verdict:
        """Wait until all agents are done, or one of them needs another round."""
        with self._waits() as waiter:
            self._meet._watch(self._who, waiter)
            meeting = self._happens(lambda meeting, now: rules.succeed(meeting, self._who, round, now))
            while meeting.beat is Beat.RUNNING and meeting.round == round:
                waiter.wait(None)
                meeting = self._tick()
            if self._waiter is None:
                self._meet._unwatch(self._who)
        if meeting.beat is not Beat.ENDED:
            return Verdict.RESTART
        self._raise_failed_run(meeting)
        return Verdict.END

    def round_over(self) -> bool:
        """Whether another agent failed, came or left."""
        meeting = self._meet.meeting
        self._raise_failed_run(meeting)
        return meeting.beat is not Beat.RUNNING or meeting.round != self._round

    def on_round_gone(self, round: int) -> None:
        """Let the others go on to the next round."""
        self._happens(lambda meeting, now: rules.gone(meeting, self._who, round, now))
        self._meet._unwatch(self._who)

    def _place_in(self, meeting: Meeting) -> Assignment | None:
        """This agent's place in the round it waits for, as soon as there is one."""
        place = meeting.places.get(self._who)
        if place is not None and place.round > self._round:
            return place
        if meeting.beat is Beat.ENDED or (meeting.closed and meeting.beat is Beat.RUNNING):
            self._refuse_more(meeting)
        if meeting.closed:
            raise RendezvousClosedError(f"the rendezvous of run {self._meet.run_id!r} is closed")
        until = rules.gives_up_at(meeting, self._who)
        if until is not None and self._now() >= until:
            limits = meeting.rules
            raise RendezvousTimeoutError(
                f"run {self._meet.run_id!r}: {len(meeting.waiting)} of at least {limits.min_members} agents "
                f"came within {limits.join_timeout:g} s. Start the missing ones, or lower min_nodes"
            )
        return None

    def _refuse_more(self, meeting: Meeting) -> None:
        """No round follows the newest one: spares may leave in peace, who comes now is too late."""
        run = f"run {self._meet.run_id!r}"
        if self._who in meeting.waiting:
            raise RendezvousGracefulExitError(f"{run} forms no further round and did not need this agent")
        if meeting.outcome is not None:
            why = f": {meeting.reason}" if meeting.reason else ""
            raise RendezvousClosedError(f"{run} has {meeting.outcome.value.lower()}{why}")

    def _raise_failed_run(self, meeting: Meeting) -> None:
        if meeting.beat is Beat.ENDED and meeting.outcome is WorkerState.FAILED:
            raise RunEnded(WorkerState.FAILED, meeting.reason, meeting.failures)

    def _leave(self) -> None:
        self._happens(lambda meeting, now: rules.leave(meeting, self._who, now))
        self._meet._unwatch(self._who)

    def _happens(self, change: Callable[[Meeting, float], Meeting]) -> Meeting:
        return self._meet._change(change, self._now())

    def _tick(self) -> Meeting:
        return self._happens(lambda meeting, _now: meeting)

    def _waits(self) -> AbstractContextManager[Waiter]:
        """The agent's waiter, or one for this wait."""
        return Waiter() if self._waiter is None else nullcontext(self._waiter)

    def _now(self) -> float:
        return time.monotonic() if self._waiter is None else self._waiter.now()


def create_rdzv_handler(params: RendezvousParameters) -> InMemoryRendezvousHandler:
    """A handler of the run's meeting in this process; the first one opens it.

    The end of the run closes it, and so does the `shutdown` of the last handler.

    Options: `max_restarts`, and `join_timeout` and `last_call_timeout` in whole seconds.
    """
    with _opening:
        key = (params.endpoint, params.run_id)
        meeting = _open_meetings.get(key)
        if meeting is None or meeting._deserted or meeting.meeting.beat is Beat.ENDED:
            meeting = _open_meetings[key] = _opened(params)
        return meeting.handler()


_opening = threading.Lock()
# Guarded by _opening; handlers keep their meeting alive, and nothing else does.
_open_meetings: weakref.WeakValueDictionary[tuple[str, str], InMemoryRendezvous] = (
    weakref.WeakValueDictionary()
)


def _opened(params: RendezvousParameters) -> InMemoryRendezvous:
    return InMemoryRendezvous(
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        max_restarts=params.get_as_int("max_restarts"),
        join_timeout=params.get_as_int("join_timeout", 600) or 600,
        last_call_timeout=params.get_as_int("last_call_timeout", 5) or 0,
    )


def _cause(failures: Mapping[int, ProcessFailure], reason: str) -> str:
    if not failures:
        return reason or "an agent could not run its workers"
    rank = min(failures, key=lambda rank: (-failures[rank].age_s(), rank))
    failure = failures[rank]
    how = f"got signal {-failure.exitcode}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
    return f"rank {rank} {how}: {failure.message_text()}"


def _earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)
