"""One worker group's life, pure: `step(state, event, now) -> (state, effects)`.

The supervisor of a group feeds events in and performs the effects; nothing else changes a group's status.
The host below (a process) and the hub above (another machine, perhaps) may each be late, repeat themselves or
vanish: an event about a round that is over changes nothing, and every question to a host has a deadline.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from agentd.api.types import TERMINAL, Failure, GroupStatus, Phase, WorkerState, WorkerStatus
from agentd.core import defaults
from agentd.core.assignment import Assignment
from agentd.core.group_events import (
    Begin,
    Effect,
    Finish,
    GroupEvent,
    HostDied,
    HostEnding,
    HostMet,
    HostReady,
    HostSpawned,
    HubDone,
    HubFailed,
    HubGone,
    HubLeave,
    HubReady,
    MadeSpare,
    Placed,
    Resumed,
    RoundStopped,
    SendFinish,
    SendPlacement,
    SendStopRound,
    StartHost,
    Sweep,
    Swept,
    Tick,
    WorkerExited,
    WorkersDone,
    WorkersFailed,
    WorkersStarted,
    WorkersUnkillable,
)
from agentd.core.lifecycle import END, Event, transition, worker_state
from agentd.quickdata import dataclass

STOP_MARGIN = defaults.KILL_WAIT + 1.0
"""How long past the grace a host may take to stop its workers: its own verdict on SIGKILL, and a little.

A stuck host must be ended before its hub gives the group up, a lease after that verdict: else workers of two
rounds live at once.
"""
HELD_UP = 0.5
"""A deadline looked at so much too late tells more of this process than of the host."""
STOPPED_MEANWHILE = "the round was stopped before its start was known"
LOST_MEANWHILE = "the host was lost while the round formed"
MAX_HOST_LOSSES = 3
"""Hosts lost in a row, without one that started its workers, until the group gives up."""


class HostState(enum.Enum):
    """What there is of the group's host process."""

    NONE = "none"
    LIVE = "live"
    """Spawned, met or not."""
    LEAVING = "leaving"
    """Its workers succeeded; it exits by itself."""
    SWEEPING = "sweeping"
    """It ended; what it left is being ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the group is to end once nothing of it runs."""

    phase: Phase
    reason: str
    kill_at: float
    """When the workers' grace is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """All there is to know about a group between two events."""

    role: str
    local_world_size: int
    stop_grace: float
    phase: Phase = Phase.PENDING
    unhealthy: bool = False
    host: HostState = HostState.NONE
    host_pid: int = 0
    host_heard: bool = False
    """Whether the host of now has ever reported."""
    round: int = 0
    """The newest round the group had a place in."""
    gone_round: int = 0
    """The newest round of which nothing runs here and the hub was told so."""
    stopped_round: int = 0
    """The newest round the hub wants stopped."""
    group_rank: int | None = None
    awaiting_place: bool = False
    offered_port: int = 0
    """What the hub was told with the last wish for a place."""
    placement: Assignment | None = None
    """Sent to the host, which has not said yet that the workers run."""
    failed: WorkersFailed | None = None
    """What the hub was told of the round, and when."""
    failed_at: float = 0.0
    workers: tuple[WorkerStatus, ...] = ()
    failures: tuple[Failure, ...] = ()
    reason: str = ""
    last_words: str = ""
    """Why the host says it ends, though nobody asked it to."""
    preload_problem: str = ""
    """Why not all workers of the newest round were forked, though the spec wishes it."""
    unkillable: str = ""
    host_losses: int = 0
    ending: Ending | None = None
    overdue_at: float | None = None
    """When a host that was asked to stop counts as stuck."""

    def as_status(self) -> GroupStatus:
        """The group as callers see it."""
        return GroupStatus(
            role=self.role,
            phase=self.phase,
            worker_state=worker_state(self.phase, unhealthy=self.unhealthy),
            group_rank=self.group_rank,
            workers=self.workers,
            round=self.round,
            reason=self.reason,
            host_pid=self.host_pid,
            local_world_size=self.local_world_size,
            failures=self.failures,
        )


Step: TypeAlias = tuple[GroupState, tuple[Effect, ...]]


def step(state: GroupState, event: GroupEvent, now: float) -> Step:
    """The group after `event`, and what is to be done about it. `now` is monotonic."""
    if state.phase in TERMINAL:
        return state, ()
    return _dispatch(state, event, now)


def _begin(state: GroupState, _event: Begin, _now: float) -> Step:
    return _host_again(state)


def _host_spawned(state: GroupState, event: HostSpawned, _now: float) -> Step:
    return replace(state, host_pid=event.pid), ()


def _host_ready(state: GroupState, event: HostReady, _now: float) -> Step:
    if state.ending or state.host is not HostState.LIVE:
        return state, ()
    gone = state.round > state.gone_round
    tell: Effect = HubGone(state.round, event.master_port) if gone else HubReady(event.master_port)
    state = _moved(state, Event.READY)
    return replace(
        state,
        host_heard=True,
        awaiting_place=True,
        offered_port=event.master_port,
        placement=None,
        failed=None,
        gone_round=state.round,
        group_rank=None,
        overdue_at=None,
        unhealthy=False,
        reason="waiting for a round to form",
    ), (tell,)


def _placed(state: GroupState, event: Placed, now: float) -> Step:
    placement = event.placement
    if state.ending or placement.round <= state.round:
        return state, ()
    could_start = state.awaiting_place
    state = replace(
        _moved(state, Event.PLACED),
        round=placement.round,
        group_rank=placement.group_rank,
        awaiting_place=False,
        reason="starting workers",
    )
    if not could_start:
        # Its host died while the round formed: the round cannot start here.
        return _tell_failed(state, WorkersFailed(placement.round, reason=LOST_MEANWHILE), now)
    return replace(state, placement=placement), (SendPlacement(placement),)


def _made_spare(state: GroupState, event: MadeSpare, _now: float) -> Step:
    if state.ending:
        return state, ()
    return replace(_moved(state, Event.SPARE), group_rank=None, reason=event.reason), ()


def _workers_started(state: GroupState, event: WorkersStarted, now: float) -> Step:
    if event.round < state.round or state.host is not HostState.LIVE:
        return state, ()
    unknown = event.round > state.round
    if unknown:
        # An earlier agentd gave the place and died before that was written down.
        state = replace(_moved(state, Event.PLACED), round=event.round, awaiting_place=False)
    state = replace(_moved(state, Event.STARTED), placement=None)
    # The reason of a stop that overtook the start is worth more than none.
    reason = "" if state.phase is Phase.RUNNING else state.reason
    state = replace(
        state,
        workers=event.workers,
        host_losses=0,
        reason=reason,
        preload_problem=event.preload_problem,
    )
    if unknown and state.stopped_round >= event.round:
        return _round_stopped(state, RoundStopped(event.round, STOPPED_MEANWHILE), now)
    return state, ()


def _worker_exited(state: GroupState, event: WorkerExited, _now: float) -> Step:
    if event.round != state.round:
        return state, ()
    workers = tuple(
        _ended_worker(worker, event) if worker.local_rank == event.local_rank else worker
        for worker in state.workers
    )
    return replace(state, workers=workers), ()


def _workers_failed(state: GroupState, event: WorkersFailed, now: float) -> Step:
    if event.round != state.round or state.round <= state.gone_round:
        return state, ()
    reason = event.reason or _failure_sentence(event.failures)
    state = replace(_moved(state, Event.WORKER_FAILED), unhealthy=True, failures=event.failures)
    if not state.ending:
        state = replace(state, reason=reason)
    # Told to the hub also while stopping: the first failure of the run may be this one.
    return _tell_failed(state, event, now)


def _workers_done(state: GroupState, event: WorkersDone, _now: float) -> Step:
    if event.round != state.round or state.host is not HostState.LIVE:
        return state, ()
    state = replace(state, host=HostState.LEAVING)
    if state.ending or state.phase is not Phase.RUNNING:
        # A stop crossed the success: the hub counts the round as stopped.
        return state, ()
    state = _moved(state, Event.DONE)
    return replace(state, reason="done; other members still run"), (HubDone(event.round),)


def _workers_unkillable(state: GroupState, event: WorkersUnkillable, now: float) -> Step:
    return _give_up(replace(state, unkillable=event.description), now)


def _host_ending(state: GroupState, event: HostEnding, _now: float) -> Step:
    return replace(state, last_words=event.reason), ()


def _host_died(state: GroupState, event: HostDied, now: float) -> Step:
    if state.host in (HostState.NONE, HostState.SWEEPING):
        return state, ()
    expected = state.host is HostState.LEAVING or state.ending is not None
    being_stopped = state.stopped_round >= state.round > state.gone_round
    state = replace(
        state,
        host=HostState.SWEEPING,
        host_pid=0,
        awaiting_place=False,
        placement=None,
        workers=_all_ended(state.workers),
    )
    if expected:
        return state, (Sweep(),)
    reason = f"the host was lost: {state.last_words or event.reason}"
    state = replace(_moved(state, Event.HOST_LOST), host_losses=state.host_losses + 1, reason=reason)
    if being_stopped:
        # What ended the round has been counted; its workers are gone all the sooner.
        return state, (Sweep(),)
    state, told = _tell_failed(state, WorkersFailed(state.round, reason=reason), now)
    return state, (*told, Sweep())


def _resumed(state: GroupState, _event: Resumed, now: float) -> Step:
    """Say again what the hub may not have heard, and go on with what was under way."""
    again: list[Effect] = []
    if state.awaiting_place:
        port = state.offered_port
        again.append(HubGone(state.round, port) if state.round else HubReady(port))
    if state.failed is not None:
        again += _tell_failed(state, state.failed, now)[1]
    if state.host is HostState.SWEEPING:
        again.append(Sweep())
    if state.host is not HostState.NONE:
        return state, tuple(again)
    if state.ending:
        return _end(state, state.ending.phase, state.ending.reason)
    state, started = _host_again(state)
    return state, (*again, *started)


def _host_met(state: GroupState, _event: HostMet, now: float) -> Step:
    """Tell it again; a host that knows already does nothing."""
    if state.host is not HostState.LIVE:
        return state, ()
    if state.ending:
        left = max(0.0, state.ending.kill_at - now)
        return state, (SendFinish(state.ending.phase, state.ending.reason, left),)
    if state.stopped_round >= state.round > state.gone_round:
        return state, (SendStopRound(state.round, state.reason),)
    return state, (SendPlacement(state.placement),) if state.placement else ()


def _swept(state: GroupState, event: Swept, now: float) -> Step:
    if state.host is not HostState.SWEEPING:
        return state, ()
    state = replace(state, host=HostState.NONE, overdue_at=None)
    if event.leftover and not state.unkillable:
        state = replace(state, unkillable=event.leftover)
    if state.unkillable:
        return _give_up(state, now)
    if state.ending:
        return _end(state, state.ending.phase, state.ending.reason)
    return _host_again(state)


def _round_stopped(state: GroupState, event: RoundStopped, now: float) -> Step:
    if not state.ending and event.round > state.round:
        # If workers of it run here, their host has yet to say so.
        return replace(state, stopped_round=max(state.stopped_round, event.round)), ()
    if state.ending or event.round != state.round or event.round <= state.gone_round:
        return state, ()
    state = replace(_moved(state, Event.STOP_ROUND), stopped_round=event.round, reason=event.reason)
    if state.host is HostState.LIVE:
        state = replace(state, overdue_at=now + state.stop_grace + STOP_MARGIN)
        return state, (SendStopRound(event.round, event.reason),)
    return _host_again(state)


def _finish(state: GroupState, event: Finish, now: float) -> Step:
    grace = state.stop_grace if event.grace is None else event.grace
    if state.ending is None:
        ending = Ending(phase=event.phase, reason=event.reason, kill_at=now + grace)
    elif now + grace < state.ending.kill_at:
        ending = replace(state.ending, kill_at=now + grace)
    else:
        return state, ()
    state = replace(_moved(state, Event.FINISH), ending=ending, reason=ending.reason)
    if state.host is HostState.NONE:
        return _end(state, ending.phase, ending.reason)
    state = replace(state, overdue_at=ending.kill_at + STOP_MARGIN)
    if state.host is HostState.LIVE:
        return state, (SendFinish(ending.phase, ending.reason, grace),)
    return state, ()


def _tick(state: GroupState, _event: Tick, now: float) -> Step:
    if state.overdue_at is None or now < state.overdue_at:
        return state, ()
    if now > state.overdue_at + HELD_UP:
        # Whoever looks so late was held up itself, and the host perhaps with it: it gets its time again.
        return replace(state, overdue_at=now + STOP_MARGIN), ()
    state = replace(state, overdue_at=None)
    if state.host not in (HostState.LIVE, HostState.LEAVING):
        return state, ()
    # A stuck host is ended as a lost one; its exit is reported by whoever watches the process.
    return replace(state, reason="the host did not stop its workers in time"), (Sweep(),)


def _host_again(state: GroupState) -> Step:
    """Start a host if one is wanted now."""
    if state.host is not HostState.NONE or state.ending or state.phase is Phase.DONE:
        return state, ()
    if state.round > state.gone_round and state.stopped_round < state.round:
        # Until the hub has judged the loss, it may as well say that the run is over.
        return state, ()
    if state.host_losses >= MAX_HOST_LOSSES:
        reason = f"{state.reason}; {state.host_losses} hosts in a row were lost before any worker started"
        state, effects = _end(state, Phase.FAILED, reason)
        return state, (HubLeave(reason), *effects)
    return replace(state, host=HostState.LIVE, host_heard=False, last_words=""), (StartHost(),)


def _give_up(state: GroupState, now: float) -> Step:
    """Processes that SIGKILL does not end: nothing may start here again."""
    reason = f"UNKILLABLE: {state.unkillable}"
    ending = Ending(phase=Phase.LOST, reason=reason, kill_at=now)
    state = replace(_moved(state, Event.FINISH), ending=ending, reason=reason)
    if state.host is HostState.NONE:
        return _end(state, Phase.LOST, reason)
    state, told = _tell_gone(state)
    return replace(state, overdue_at=now + STOP_MARGIN), (*told, SendFinish(Phase.LOST, reason, 0.0))


def _end(state: GroupState, phase: Phase, reason: str) -> Step:
    """Nothing of the group runs here any more, for good."""
    state, told = _tell_gone(state)
    state = replace(
        _moved(state, END[phase]),
        reason=reason,
        host=HostState.NONE,
        host_pid=0,
        overdue_at=None,
        awaiting_place=False,
        workers=_all_ended(state.workers),
    )
    return state, told


def _tell_failed(state: GroupState, event: WorkersFailed, now: float) -> Step:
    """Its failures are older when they are told again."""
    known = state.failed is event
    since = max(0.0, now - state.failed_at) if known else 0.0
    if not known:
        state = replace(state, failed=event, failed_at=now)
    ages = tuple(age + since for age in event.ages)
    return state, (HubFailed(event.round, event.failures, ages, event.reason),)


def _tell_gone(state: GroupState) -> Step:
    """The hub may wait for this group's part of the round to be gone. No port: it wants no other place."""
    if state.round <= state.gone_round:
        return state, ()
    return replace(state, gone_round=state.round), (HubGone(state.round, 0, state.unkillable),)


def _moved(state: GroupState, event: Event) -> GroupState:
    return replace(state, phase=transition(state.phase, event))


def _ended_worker(worker: WorkerStatus, event: WorkerExited) -> WorkerStatus:
    if event.torn_down:
        ended = WorkerState.STOPPED
    else:
        ended = WorkerState.SUCCEEDED if event.exit_code == 0 else WorkerState.FAILED
    return replace(worker, state=ended, exit_code=event.exit_code, signal=event.signal)


def _all_ended(workers: tuple[WorkerStatus, ...]) -> tuple[WorkerStatus, ...]:
    return tuple(
        replace(worker, state=WorkerState.STOPPED) if WorkerState.is_running(worker.state) else worker
        for worker in workers
    )


def _failure_sentence(failures: tuple[Failure, ...]) -> str:
    if not failures:
        return "the group failed"
    first = failures[0]
    how = f"signal {first.signal}" if first.signal is not None else f"exit code {first.exit_code}"
    return f"rank {first.rank} (pid {first.pid}) ended with {how}"


_HANDLERS: dict[type, Callable[..., Step]] = {
    Begin: _begin,
    HostSpawned: _host_spawned,
    HostReady: _host_ready,
    WorkersStarted: _workers_started,
    WorkerExited: _worker_exited,
    WorkersFailed: _workers_failed,
    WorkersDone: _workers_done,
    WorkersUnkillable: _workers_unkillable,
    HostEnding: _host_ending,
    HostDied: _host_died,
    Resumed: _resumed,
    HostMet: _host_met,
    Swept: _swept,
    Placed: _placed,
    MadeSpare: _made_spare,
    RoundStopped: _round_stopped,
    Finish: _finish,
    Tick: _tick,
}


def _dispatch(state: GroupState, event: GroupEvent, now: float) -> Step:
    return _HANDLERS[type(event)](state, event, now)
