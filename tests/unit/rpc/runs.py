"""Runs in memory, for tests of what the wire makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from agentd.api.errors import NoControllerLease, RunNotFound
from agentd.api.history import EndedRunsPage, Event, EventsPage, EventsRequest
from agentd.api.types import (
    TERMINAL,
    ControllerLease,
    Drain,
    DrainReport,
    DrainRequest,
    GroupStatus,
    LogChunk,
    LogsRequest,
    LogStream,
    NodeInfo,
    NodeStatus,
    Phase,
    RunRequest,
    RunStatus,
    StopRequest,
    StreamEnd,
    WorkerState,
)


def a_run(run_id: str = "r", phase: Phase = Phase.RUNNING, revision: int = 1) -> RunStatus:
    group = GroupStatus(role="default", phase=phase, worker_state=WorkerState.HEALTHY)
    return RunStatus(
        run_id=run_id,
        incarnation=1,
        phase=phase,
        revision=revision,
        nodes=(NodeStatus(node_id="n", groups=(group,)),),
    )


@dataclass
class MemoryRuns:
    """What a registry would say."""

    known: dict[str, RunStatus] = field(default_factory=dict)
    past: dict[str, RunStatus] = field(default_factory=dict)
    """Not known until it is recalled."""
    failure: Exception | None = None
    accepting: bool = True
    changes: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    open_watches: int = 0

    async def show(self, status: RunStatus) -> None:
        self.known[status.run_id] = status
        async with self.changed:
            self.changes += 1
            self.changed.notify_all()

    async def run(self, request: RunRequest) -> tuple[RunStatus, bool]:
        if self.failure:
            raise self.failure
        created = request.spec.run_id not in self.known
        if created:
            await self.show(a_run(request.spec.run_id))
        return self.known[request.spec.run_id], created

    async def recall(self, run_id: str) -> None:
        if run_id in self.past:
            self.known[run_id] = self.past[run_id]

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus:
        if run_id not in self.known:
            raise RunNotFound(run_id, "n")
        return self.known[run_id]

    def runs(self, include_ended: bool) -> list[RunStatus]:
        return [run for run in self.known.values() if include_ended or run.phase not in TERMINAL]

    async def watch(
        self, run_id: str, incarnation: int, after_revision: int
    ) -> AsyncIterator[RunStatus | StreamEnd]:
        if run_id and run_id not in self.known:
            raise RunNotFound(run_id, "n")
        shown: dict[str, RunStatus] = {}
        self.open_watches += 1
        try:
            while True:
                looked = self.changes  # what is shown while one of these is on its way is a change too
                for run in [run for name, run in self.known.items() if run_id in ("", name)]:
                    if shown.get(run.run_id) is not run:
                        shown[run.run_id] = run
                        yield run
                await self._another_than(looked)
        finally:
            self.open_watches -= 1

    async def _another_than(self, change: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.changes != change)

    async def stop(self, request: StopRequest, caller: str = "") -> RunStatus:
        return self.status(request.run_id)

    async def signal(
        self, run_id: str, incarnation: int, signum: int, ranks: tuple[int, ...], caller: str = ""
    ) -> tuple[int, ...]:
        return ranks

    async def renew_lease(self, run_id: str, incarnation: int = 0) -> ControllerLease:
        raise NoControllerLease(run_id)

    def health(self, run_id: str, role: str | None) -> bool:
        run = self.status(run_id)
        if role not in (None, "default"):
            raise RunNotFound(f"{run_id}/{role}", "n")
        return run.phase is Phase.RUNNING


class OneChunk:
    """A log of one line that never ends."""

    async def read(self, request: LogsRequest) -> AsyncIterator[LogChunk | StreamEnd]:
        yield LogChunk(
            role="default", round=1, rank=0, local_rank=0, stream=LogStream.STDOUT, offset=0, data=b"hi\n"
        )
        await asyncio.Event().wait()


class OneNode:
    """A node that is always well."""

    async def info(self) -> NodeInfo:
        return NodeInfo(node_id="n", cpus=2)


class NoHandover:
    """Of an agentd that stays."""

    def ask(self, pid: int) -> int:
        return pid + 1


class NoDrainage:
    """Of a node that its operator never drains; tested with the real one."""

    async def drain(self, request: DrainRequest, caller: str = "") -> DrainReport:
        return DrainReport(drain=Drain(mode=request.mode, since=1.0))

    async def undrain(self, caller: str = "") -> Drain | None:
        return None


class OneEvent:
    """A history of one event."""

    async def events(self, request: EventsRequest) -> EventsPage:
        return EventsPage(events=(Event(id=1, time=1.0, node_id="n", kind="agentd_started"),))

    async def ended_runs(self, page_size: int, page_token: str) -> EndedRunsPage:
        return EndedRunsPage(runs=())
