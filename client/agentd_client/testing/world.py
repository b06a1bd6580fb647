"""What the fake agents of a fleet agree on: runs, members, what workers wrote. Safe between threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import field, replace
from typing import Any, Final

from agentd.api.errors import NoControllerLease, RunConflict, RunEnded, RunNotFound
from agentd.api.history import Event, EventKind
from agentd.api.types import (
    TERMINAL,
    ControllerLease,
    Failure,
    GroupStatus,
    LogChunk,
    LogStream,
    NodeStatus,
    Phase,
    RoleSpec,
    RunRequest,
    RunSpec,
    RunStatus,
    WorkerState,
    WorkerStatus,
)
from agentd.quickdata import dataclass

FIRST_PID: Final = 10_000
_STATES: Final = {
    Phase.RUNNING: WorkerState.HEALTHY,
    Phase.SUCCEEDED: WorkerState.SUCCEEDED,
    Phase.FAILED: WorkerState.STOPPED,
    Phase.STOPPED: WorkerState.STOPPED,
}


@dataclass(frozen=True, slots=True)
class LogFile:
    """One worker's output file."""

    node_id: str
    role: str
    round: int
    rank: int
    local_rank: int
    stream: LogStream


@dataclass(slots=True)
class FakeRun:
    """A run: its spec, its members in the order they came, its state as the hub has it."""

    request_id: str
    spec: RunSpec
    hub: str
    status: RunStatus
    members: dict[str, NodeStatus] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    logs: dict[LogFile, bytes] = field(default_factory=dict)


class World:
    """The runs of a fake fleet. Every change wakes all who watch."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._runs: dict[str, list[FakeRun]] = {}  # guarded by changed
        self._incarnation = int(time.time())

    def start(self, node_id: str, address: str, request: RunRequest) -> tuple[RunStatus, bool]:
        """A node takes its part of a run."""
        with self.changed:
            run = self._newest(request.spec.run_id)
            if request.join or request.hub_address:
                run = self._running(request.spec.run_id, node_id)
            elif run is None or self._is_over(run, request):
                run = self._create(node_id, address, request)
            elif run.status.phase not in TERMINAL and run.spec != request.spec:
                raise RunConflict(request.spec.run_id, _differing(run.spec, request.spec))
            created = node_id not in run.members and run.status.phase not in TERMINAL
            takes_part = bool(request.node_name) or not run.spec.nodes
            if created and takes_part:
                self._add_member(run, node_id, address, request.node_name)
            return self._as_seen_by(run, node_id), created

    def status(self, node_id: str, run_id: str, incarnation: int = 0) -> RunStatus:
        """A run as one node tells it: the whole by its hub, and the workers it has itself."""
        with self.changed:
            return self._as_seen_by(self.run_of(node_id, run_id, incarnation), node_id)

    def list_runs(self, node_id: str, include_ended: bool) -> list[RunStatus]:
        """Every run a node knows, oldest first."""
        with self.changed:
            runs = [run for runs in self._runs.values() for run in runs if self._knows(run, node_id)]
            seen = [self._as_seen_by(run, node_id) for run in runs]
        return [status for status in seen if include_ended or status.phase not in TERMINAL]

    def list_events(self, node_id: str, run_id: str, incarnation: int = 0) -> list[Event]:
        """When each run, or the one of that id, began and ended on a node."""
        with self.changed:
            if run_id:
                runs = [self.run_of(node_id, run_id, incarnation)]
            else:
                runs = [run for runs in self._runs.values() for run in runs if self._knows(run, node_id)]
            events = [event for run in runs for event in _events(run.status, node_id)]
        return sorted(events, key=lambda event: event.id)

    def describe(self, node_id: str, run_id: str, incarnation: int = 0) -> tuple[RunStatus, RunSpec]:
        """The run as its hub has it: members' places, no process ids."""
        with self.changed:
            run = self.run_of(node_id, run_id, incarnation)
            if run.hub != node_id:
                raise RunNotFound(run_id, node_id)
            nodes = tuple(_without_workers(node) for node in run.members.values())
            return replace(run.status, nodes=nodes, from_hub=True), run.spec

    def renew_lease(self, node_id: str, run_id: str, incarnation: int = 0) -> ControllerLease:
        """Move the end of a run's controller lease. A fake never ends a run for it."""
        with self.changed:
            run = self.run_of(node_id, run_id, incarnation)
            if run.spec.controller_lease is None:
                raise NoControllerLease(run_id)
            if run.status.phase in TERMINAL:
                raise RunEnded(run_id, run.status.phase.value)
            until = time.time() + run.spec.controller_lease
            self._publish(run, controller_lease_until=until)
            return ControllerLease(duration=run.spec.controller_lease, until=until)

    def knows(self, node_id: str, run_id: str) -> bool:
        """Whether a node has a part in a live run of that id."""
        with self.changed:
            return any(
                self._knows(run, node_id) and run.status.phase not in TERMINAL
                for run in self._runs.get(run_id, [])
            )

    def run_of(self, node_id: str, run_id: str, incarnation: int = 0) -> FakeRun:
        """The run itself. Raises `RunNotFound` where the node has nothing of it."""
        for run in reversed(self._runs.get(run_id, [])):
            if (not incarnation or run.status.incarnation == incarnation) and self._knows(run, node_id):
                return run
        raise RunNotFound(run_id, node_id)

    def publish(self, run_id: str, **changes: Any) -> RunStatus:
        """Change fields of a run's status, as its hub would."""
        with self.changed:
            run = self._runs[run_id][-1]
            self._publish(run, **changes)
            return run.status

    def finish(
        self,
        run_id: str,
        phase: Phase | None = None,
        *,
        rank: int = 0,
        exit_code: int | None = None,
        signal: int | None = None,
        message: str = "",
        stderr_tail: str = "",
        reason: str = "",
    ) -> RunStatus:
        """End a run. With an exit code or a signal it failed, and that worker was the first."""
        with self.changed:
            run = self._runs[run_id][-1]
            failed = bool(exit_code) or signal is not None
            end = phase or (Phase.FAILED if failed else Phase.SUCCEEDED)
            failure = None
            if failed:
                failure = self._failure(run, rank, exit_code, signal, message, stderr_tail)
            for node_id, node in run.members.items():
                run.members[node_id] = _ended(node, end, failure)
            self._publish(
                run, phase=end, first_failure=failure, finished_at=time.time(), reason=reason, missing=()
            )
            return run.status

    def stop(self, node_id: str, run_id: str, incarnation: int, *, leave: bool, reason: str) -> RunStatus:
        """End a run, or one node's part."""
        with self.changed:
            run = self.run_of(node_id, run_id, incarnation)
            if run.status.phase not in TERMINAL:
                if leave:
                    run.left.add(node_id)
                    run.members.pop(node_id, None)
                    self._publish(run, membership_changes=run.status.membership_changes + 1)
                else:
                    self.finish(run_id, Phase.STOPPED, reason=reason)
            return self._as_seen_by(run, node_id)

    def write_log(
        self, run_id: str, *, rank: int = 0, data: bytes, stream: LogStream = LogStream.STDOUT, round: int = 0
    ) -> None:
        """A worker writes."""
        with self.changed:
            run = self._runs[run_id][-1]
            node_id, worker = _worker(run, rank)
            file = LogFile(node_id, worker.role, round or run.status.round, rank, worker.local_rank, stream)
            run.logs[file] = run.logs.get(file, b"") + data
            self.changed.notify_all()

    def chunks(
        self, run: FakeRun, node_id: str, wanted: Callable[[LogFile], bool], offsets: dict[LogFile, int]
    ) -> list[LogChunk]:
        """What a node's files hold behind the offsets, which move on."""
        found = []
        for file, data in run.logs.items():
            start = offsets.get(file, 0)
            if file.node_id == node_id and wanted(file) and len(data) > start:
                offsets[file] = len(data)
                found.append(
                    LogChunk(
                        role=file.role,
                        round=file.round,
                        rank=file.rank,
                        local_rank=file.local_rank,
                        stream=file.stream,
                        offset=start,
                        data=data[start:],
                        node_id=node_id,
                    )
                )
        return found

    def _newest(self, run_id: str) -> FakeRun | None:
        return self._runs.get(run_id, [None])[-1]

    def _running(self, run_id: str, node_id: str) -> FakeRun:
        run = self._newest(run_id)
        if run is None:
            raise RunNotFound(run_id, node_id)
        if run.status.phase in TERMINAL:
            raise RunEnded(run_id, run.status.phase)
        return run

    @staticmethod
    def _is_over(run: FakeRun, request: RunRequest) -> bool:
        return run.status.phase in TERMINAL and run.request_id != request.request_id

    def _create(self, node_id: str, address: str, request: RunRequest) -> FakeRun:
        self._incarnation += 1
        spec = request.spec
        listed = tuple(node for role in spec.roles for node in role.nodes or spec.nodes)
        low = spec.rendezvous.min_members or len(listed) or 1
        status = RunStatus(
            run_id=spec.run_id,
            incarnation=self._incarnation,
            phase=Phase.RENDEZVOUS,
            max_restarts=spec.max_restarts,
            min_members=low,
            max_members=spec.rendezvous.max_members or max(low, len(listed)),
            missing=tuple(spec.nodes),
            hub_address=address,
            started_at=time.time(),
            labels=spec.labels,
            revision=1,
        )
        run = FakeRun(request_id=request.request_id, spec=spec, hub=node_id, status=status)
        self._runs.setdefault(spec.run_id, []).append(run)
        return run

    def _add_member(self, run: FakeRun, node_id: str, address: str, name: str) -> None:
        run.left.discard(node_id)
        run.members[node_id] = NodeStatus(node_id=node_id, address=address, name=name, phase=Phase.RENDEZVOUS)
        present = {node.name for node in run.members.values()}
        missing = tuple(node for node in run.spec.nodes if node not in present)
        if len(run.members) < run.status.min_members:
            self._publish(run, missing=missing)
            return
        # Ranks follow the node list, as agentd gives them out, however the calls raced.
        order = {node: i for i, node in enumerate(run.spec.nodes)}
        run.members = dict(sorted(run.members.items(), key=lambda item: order.get(item[1].name, len(order))))
        ranks = iter(range(100_000))
        for group_rank, (member, node) in enumerate(run.members.items()):
            run.members[member] = _with_workers(node, group_rank, run, ranks)
        self._publish(run, phase=Phase.RUNNING, round=run.status.round + 1, missing=missing)

    def _publish(self, run: FakeRun, **changes: Any) -> None:
        run.status = replace(run.status, revision=run.status.revision + 1, **changes)
        self.changed.notify_all()

    @staticmethod
    def _knows(run: FakeRun, node_id: str) -> bool:
        return node_id == run.hub or node_id in run.members or node_id in run.left

    @staticmethod
    def _as_seen_by(run: FakeRun, node_id: str) -> RunStatus:
        nodes = tuple(
            node if member == node_id else _without_workers(node) for member, node in run.members.items()
        )
        phase = Phase.STOPPED if node_id in run.left else run.status.phase
        return replace(run.status, nodes=nodes, phase=phase, from_hub=node_id == run.hub)

    @staticmethod
    def _failure(
        run: FakeRun, rank: int, exit_code: int | None, signal: int | None, message: str, stderr_tail: str
    ) -> Failure:
        node_id, worker = _worker(run, rank)
        return Failure(
            node_id=node_id,
            role=worker.role,
            round=run.status.round,
            rank=rank,
            local_rank=worker.local_rank,
            pid=worker.pid,
            exit_code=None if signal is not None else exit_code,
            signal=signal,
            message=message,
            stderr_tail=stderr_tail,
            time=time.time(),
            log_dir=worker.log_dir,
        )


def _events(status: RunStatus, node_id: str) -> list[Event]:
    def event(number: int, time: float, kind: EventKind, phase: Phase) -> Event:
        return Event(
            id=2 * status.incarnation + number,
            time=time,
            node_id=node_id,
            kind=kind.value,
            run_id=status.run_id,
            incarnation=status.incarnation,
            phase=phase,
            detail=status.reason if number else "",
        )

    started = event(0, status.started_at, EventKind.RUN_STARTED, Phase.PENDING)
    if status.phase not in TERMINAL:
        return [started]
    return [started, event(1, status.finished_at, EventKind.RUN_ENDED, status.phase)]


def _worker(run: FakeRun, rank: int) -> tuple[str, WorkerStatus]:
    for node_id, node in run.members.items():
        for group in node.groups:
            for worker in group.workers:
                if worker.rank == rank:
                    return node_id, worker
    raise LookupError(f"run {run.spec.run_id!r} has no worker of rank {rank}")


def _with_workers(node: NodeStatus, group_rank: int, run: FakeRun, ranks: Iterable[int]) -> NodeStatus:
    groups = []
    numbers = iter(ranks)
    for role in run.spec.roles:
        if role.nodes and node.name not in role.nodes:
            continue
        size = _size(role, node.name)
        workers = tuple(
            WorkerStatus(
                role=role.role,
                rank=(rank := next(numbers)),
                local_rank=local_rank,
                role_rank=rank,
                pid=FIRST_PID + rank,
                state=WorkerState.HEALTHY,
                started_at=time.time(),
                log_dir=f"/var/log/{run.spec.run_id}/{local_rank}",
            )
            for local_rank in range(size)
        )
        groups.append(
            GroupStatus(
                role=role.role,
                phase=Phase.RUNNING,
                worker_state=WorkerState.HEALTHY,
                group_rank=group_rank,
                workers=workers,
                round=run.status.round + 1,
                local_world_size=size,
            )
        )
    return replace(node, phase=Phase.RUNNING, groups=tuple(groups))


def _size(role: RoleSpec, name: str) -> int:
    size = role.local_world_size_by_node.get(name, role.local_world_size)
    return size if isinstance(size, int) else 1


def _without_workers(node: NodeStatus) -> NodeStatus:
    return replace(node, groups=tuple(replace(group, workers=()) for group in node.groups))


def _ended(node: NodeStatus, phase: Phase, failure: Failure | None) -> NodeStatus:
    groups = tuple(
        replace(
            group,
            phase=phase,
            worker_state=WorkerState.FAILED if phase is Phase.FAILED else _STATES[phase],
            workers=tuple(_ended_worker(worker, phase, failure) for worker in group.workers),
            failures=(failure,) if failure and failure.node_id == node.node_id else (),
        )
        for group in node.groups
    )
    return replace(node, phase=phase, groups=groups)


def _ended_worker(worker: WorkerStatus, phase: Phase, failure: Failure | None) -> WorkerStatus:
    if failure is not None and failure.rank == worker.rank:
        return replace(worker, state=WorkerState.FAILED, exit_code=failure.exit_code, signal=failure.signal)
    if phase is Phase.SUCCEEDED:
        return replace(worker, state=WorkerState.SUCCEEDED, exit_code=0)
    return replace(worker, state=_STATES.get(phase, WorkerState.UNKNOWN), signal=15)


def _differing(one: RunSpec, other: RunSpec) -> list[str]:
    return [name for name in RunSpec.__dataclass_fields__ if getattr(one, name) != getattr(other, name)]
