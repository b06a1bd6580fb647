"""What is worth a line of the node's history, and what it says. Pure: the journal keeps it."""

from __future__ import annotations

from collections.abc import Mapping

from agentd.api.history import EventKind, EventWorker
from agentd.api.signals import signal_name
from agentd.api.types import (
    TERMINAL,
    Drain,
    DrainMode,
    Failure,
    NodeStatus,
    Phase,
    RunStatus,
    StopRequest,
    StopScope,
    WorkerStatus,
)
from agentd.core import group_events as ev
from agentd.core.conditions import Condition
from agentd.core.group import GroupState
from agentd.core.ranks import named
from agentd.groups.records import EventRow, RunRow
from agentd.host.wire import HostSpec

_KINDS: Mapping[type[object], EventKind] = {
    ev.HostSpawned: EventKind.HOST_STARTED,
    ev.HostDied: EventKind.HOST_ENDED,
    ev.Placed: EventKind.ROUND_FORMED,
    ev.RoundStopped: EventKind.ROUND_STOPPED,
    ev.WorkersStarted: EventKind.WORKERS_STARTED,
    ev.WorkerExited: EventKind.WORKER_ENDED,
    ev.WorkersFailed: EventKind.WORKERS_FAILED,
    ev.WorkersUnkillable: EventKind.UNKILLABLE,
}


def of_group(
    spec: HostSpec, event: ev.GroupEvent, before: GroupState, after: GroupState, now: float
) -> tuple[EventRow, ...]:
    """The line of an event of a worker group, if it is worth one. `now` is wall-clock time."""
    kind = _KINDS.get(type(event))
    if kind is None:
        if after.phase is before.phase:
            return ()
        kind = EventKind.PHASE
    return (
        EventRow(
            time=now,
            kind=kind.value,
            run_id=spec.run_id,
            incarnation=spec.incarnation,
            role=spec.role,
            phase=after.phase,
            round=after.round,
            detail=_detail(event, after),
            workers=_workers(event, after),
        ),
    )


def run_started(status: RunStatus, hub_address: str, now: float) -> EventRow:
    """The node takes its part in a run. `hub_address` is empty if the hub is here."""
    hub = f"its hub is {hub_address}" if hub_address else "this node is its hub"
    return _of_run(EventKind.RUN_STARTED, status, hub, now)


def run_ended(status: RunStatus, now: float) -> EventRow:
    """Nothing of the run is left on the node."""
    failure = status.first_failure
    cause = "" if failure is None else f"; first failure: {_failure(failure)}"
    return _of_run(EventKind.RUN_ENDED, status, f"{status.reason or status.phase}{cause}", now)


def stop_asked(status: RunStatus, request: StopRequest, caller: str, now: float) -> EventRow:
    """Somebody wants the end of a run, or of the node's part. `caller`: where they call from."""
    whole = "of the whole run" if request.scope is not StopScope.LEAVE else "of this node's part"
    grace = "" if request.grace is None else f", within {request.grace:g} s"
    reason = f": {request.reason}" if request.reason else ""
    return _of_run(
        EventKind.STOP_ASKED, status, f"the end {whole}{grace}, asked from {caller or 'here'}{reason}", now
    )


def signal_sent(status: RunStatus, signum: int, ranks: tuple[int, ...], caller: str, now: float) -> EventRow:
    """Somebody sent workers a signal."""
    detail = f"{signal_name(signum)} to {named(ranks)}, asked from {caller or 'here'}"
    return _of_run(EventKind.SIGNAL_SENT, status, detail, now)


def host_met(spec: HostSpec, state: GroupState, now: float) -> EventRow:
    """The host has dialled in again: it and its workers went on meanwhile."""
    return EventRow(
        time=now,
        kind=EventKind.HOST_MET.value,
        run_id=spec.run_id,
        incarnation=spec.incarnation,
        role=spec.role,
        phase=state.phase,
        round=state.round,
        detail=f"pid {state.host_pid}",
    )


def group_lost(run: RunRow, role: str, reason: str, now: float) -> EventRow:
    """A group of an earlier agentd cannot go on: what was left of it has been ended."""
    return EventRow(
        time=now,
        kind=EventKind.HOST_ENDED.value,
        run_id=run.run_id,
        incarnation=run.incarnation,
        role=role,
        phase=Phase.LOST,
        detail=f"the group is lost: {reason}",
    )


def hub_lost(status: RunStatus, problem: str, now: float) -> EventRow:
    """The hub does not answer; workers go on."""
    return _of_run(EventKind.HUB_LOST, status, problem, now)


def hub_found(status: RunStatus, now: float) -> EventRow:
    """The hub answers again."""
    return _of_run(EventKind.HUB_FOUND, status, f"hub {status.hub_address} answers again", now)


def nodes_changed(before: RunStatus, after: RunStatus, now: float) -> tuple[EventRow, ...]:
    """What the run's hub has noticed of its nodes between two views of its own."""
    if after.phase in TERMINAL:
        return ()
    known = {node.node_id: node for node in before.nodes}
    return tuple(
        _of_run(kind, after, f"{node.name or node.node_id}{f': {node.reason}' if node.reason else ''}", now)
        for node in after.nodes
        if (was := known.get(node.node_id)) is not None and (kind := _noticed(was, node)) is not None
    )


def _noticed(was: NodeStatus, now: NodeStatus) -> EventKind | None:
    if now.phase is Phase.LOST:
        return EventKind.NODE_LOST if was.phase is not Phase.LOST else None
    if now.detached:
        return EventKind.NODE_DETACHED if not was.detached else None
    back = now.phase not in TERMINAL and (was.detached or was.phase is Phase.LOST)
    return EventKind.NODE_BACK if back else None


def agentd_started(*, version: str, pid: int, starts: int, former: str, now: float) -> EventRow:
    """An agentd begins here. `former`: how the one before it ended, if it is known."""
    detail = f"agentd {version}, pid {pid}, start {starts} here{f'; {former}' if former else ''}"
    return EventRow(time=now, kind=EventKind.AGENTD_STARTED.value, detail=detail)


def agentd_ended(*, pid: int, reason: str, now: float) -> EventRow:
    """It goes away, and says so."""
    return EventRow(time=now, kind=EventKind.AGENTD_ENDED.value, detail=f"pid {pid}: {reason}")


def condition_turned(name: str, sentence: str, now: float) -> tuple[EventRow, ...]:
    """Something degrades the node, or does so no longer: then the sentence is empty."""
    if name == Condition.JOURNAL_DAMAGED:
        # What of it could not be read has lines of its own.
        return ()
    kind = EventKind.CONDITION_BEGAN if sentence else EventKind.CONDITION_OVER
    detail = f"{name}: {sentence}" if sentence else name
    return (EventRow(time=now, kind=kind.value, detail=detail),)


def node_drained(drain: Drain, caller: str, now: float) -> EventRow:
    """An operator wants the node empty. `caller`: where they call from."""
    until = "" if drain.mode is DrainMode.MOVE else "its runs may end here"
    if drain.deadline:
        until = f"its runs may end here for {drain.deadline - now:.0f} s more"
    detail = f"no new run; {until or 'it leaves its runs'}, asked from {caller or 'here'}"
    reason = f": {drain.reason}" if drain.reason else ""
    return EventRow(time=now, kind=EventKind.NODE_DRAINED.value, detail=detail + reason)


def node_undrained(caller: str, now: float) -> EventRow:
    """It takes runs again."""
    detail = f"runs are taken again, asked from {caller or 'here'}"
    return EventRow(time=now, kind=EventKind.NODE_UNDRAINED.value, detail=detail)


def journal_damaged(what: str, now: float) -> EventRow:
    """Something of the journal could not be read."""
    return EventRow(time=now, kind=EventKind.JOURNAL_DAMAGED.value, detail=what)


def _of_run(kind: EventKind, status: RunStatus, detail: str, now: float) -> EventRow:
    return EventRow(
        time=now,
        kind=kind.value,
        run_id=status.run_id,
        incarnation=status.incarnation,
        phase=status.phase,
        round=status.round,
        detail=detail,
    )


def _detail(event: ev.GroupEvent, after: GroupState) -> str:
    match event:
        case ev.HostSpawned(pid):
            return f"pid {pid}"
        case ev.HostDied(reason):
            return after.last_words or reason
        case ev.Placed(placement):
            return f"group rank {placement.group_rank}"
        case ev.RoundStopped(_, reason):
            return reason
        case ev.WorkerExited():
            return "torn down" if event.torn_down else "by itself"
        case ev.WorkersFailed():
            return event.reason or "; ".join(_failure(failure) for failure in event.failures[:4])
        case ev.WorkersUnkillable(description):
            return description
        case ev.WorkersStarted():
            return f"without preload: {event.preload_problem}" if event.preload_problem else ""
        case _:
            return after.reason if after.phase is not Phase.RUNNING else ""


def _workers(event: ev.GroupEvent, after: GroupState) -> tuple[EventWorker, ...]:
    match event:
        case ev.WorkersStarted():
            return tuple(map(_worker, event.workers))
        case ev.WorkerExited():
            return tuple(_worker(worker) for worker in after.workers if worker.local_rank == event.local_rank)
        case ev.WorkersFailed():
            return tuple(map(_worker, event.failures))
        case _:
            return ()


def _worker(worker: WorkerStatus | Failure) -> EventWorker:
    return EventWorker(
        rank=worker.rank,
        local_rank=worker.local_rank,
        pid=worker.pid,
        exit_code=worker.exit_code,
        signal=worker.signal,
    )


def _failure(failure: Failure) -> str:
    if failure.signal is not None:
        how = signal_name(failure.signal)
    else:
        how = f"exit code {failure.exit_code}" if failure.exit_code is not None else "lost"
    message = failure.message.strip().splitlines()[-1:] or [""]
    return (
        f"rank {failure.rank} on node {failure.node_id}: {how}{f': {message[0]:.200}' if message[0] else ''}"
    )
