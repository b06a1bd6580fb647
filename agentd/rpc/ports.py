"""What the servicers need of the rest of agentd, and nothing else of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from agentd.api.history import EndedRunsPage, EventsPage, EventsRequest
from agentd.api.types import (
    ControllerLease,
    Drain,
    DrainReport,
    DrainRequest,
    LogChunk,
    LogGap,
    LogsRequest,
    NodeInfo,
    RunRequest,
    RunStatus,
    StopRequest,
    StreamEnd,
)


class Runs(Protocol):
    """The runs of this node. `run`, `stop`, `signal` and `renew_lease` act; the others read snapshots."""

    async def run(self, request: RunRequest) -> tuple[RunStatus, bool]: ...

    async def recall(self, run_id: str) -> None:
        """Know a run again that ended long ago, if anything does. Before the snapshots are asked for it."""

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus: ...

    def runs(self, include_ended: bool) -> list[RunStatus]: ...

    def watch(
        self, run_id: str, incarnation: int, after_revision: int
    ) -> AsyncIterator[RunStatus | StreamEnd]: ...

    async def stop(self, request: StopRequest, caller: str = "") -> RunStatus: ...

    async def signal(
        self, run_id: str, incarnation: int, signum: int, ranks: tuple[int, ...], caller: str = ""
    ) -> tuple[int, ...]: ...

    async def renew_lease(self, run_id: str, incarnation: int = 0) -> ControllerLease: ...

    def health(self, run_id: str, role: str | None) -> bool: ...


class History(Protocol):
    """What happened on this node."""

    async def events(self, request: EventsRequest) -> EventsPage: ...

    async def ended_runs(self, page_size: int, page_token: str) -> EndedRunsPage: ...


class Drainage(Protocol):
    """Whether the node takes new runs, by the wish of its operator."""

    async def drain(self, request: DrainRequest, caller: str = "") -> DrainReport: ...

    async def undrain(self, caller: str = "") -> Drain | None: ...


class Handover(Protocol):
    """The end of this agentd, but not of what it started."""

    def ask(self, pid: int) -> int: ...


class Logs(Protocol):
    """Worker output of this node."""

    def read(self, request: LogsRequest) -> AsyncIterator[LogChunk | LogGap | StreamEnd]: ...


class Node(Protocol):
    """This node as a whole."""

    async def info(self) -> NodeInfo: ...
