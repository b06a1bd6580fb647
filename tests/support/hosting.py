"""A real host with a test in agentd's place: it hears every report and says what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

from agentd.core.assignment import Assignment
from agentd.host.door import HostDoor
from agentd.host.handle import HostHandle
from agentd.host.wire import Assigned, HostSpec, Ready, ReportFrame, Started
from tests.support.waiting import wait_until_async

PATIENCE_S = 30.0
R = TypeVar("R")


class Ear:
    """Collects what one host says."""

    def __init__(self) -> None:
        self.reports: list[ReportFrame] = []
        self.met = 0
        """How often it dialled in again."""
        self.exit = ""
        self.handle: HostHandle | None = None

    def on_host_frame(self, frame: ReportFrame) -> None:
        self.reports.append(frame)

    def on_host_met(self) -> None:
        self.met += 1

    def on_host_exit(self, reason: str) -> None:
        self.exit = reason

    def all(self, kind: type[R]) -> list[R]:
        """The reports of a kind, in order."""
        return [report for report in self.reports if isinstance(report, kind)]

    async def hears(self, kind: type[R], count: int = 1) -> R:
        """The count-th report of a kind, waiting for it."""
        await wait_until_async(
            lambda: len(self.all(kind)) >= count or self.exit, PATIENCE_S, what=f"{count} x {kind.__name__}"
        )
        assert len(self.all(kind)) >= count, f"the host ended ({self.exit}) after {self.reports}"
        return self.all(kind)[count - 1]

    async def ends(self) -> str:
        """How the host process ended, waiting for it."""
        return await wait_until_async(lambda: self.exit, PATIENCE_S, what="the host's end")

    async def starts(self, round: int = 1) -> Started:
        """Give the group a place alone in the world, once it wants one, and wait for its workers."""
        ready = await self.hears(Ready, len(self.all(Started)) + 1)
        assert self.handle is not None
        size = self.handle._spec.local_world_size
        self.handle.send(place(round, size, ready.master_port))
        return await self.hears(Started, len(self.all(Started)) + 1)


def place(round: int, size: int, port: int = 29_500, **changes: Any) -> Assigned:
    """The place of a group that is alone."""
    fields: dict[str, Any] = {
        "round": round,
        "group_rank": 0,
        "group_world_size": 1,
        "rank_base": 0,
        "world_size": size,
        "role_rank_base": 0,
        "role_world_size": size,
        "master_addr": "127.0.0.1",
        "master_port": port,
        "restart_count": round - 1,
        "max_restarts": 3,
    }
    return Assigned(place=Assignment(**{**fields, **changes}))


def host_spec(root: Path, *argv: str, env: dict[str, str] | None = None, **changes: Any) -> HostSpec:
    """A group that runs `argv`, by default nothing for long."""
    fields: dict[str, Any] = {
        "run_id": "job",
        "incarnation": 7,
        "role": "default",
        "node_id": "n1",
        "token": secrets.token_hex(16),
        "local_world_size": 2,
        "argv": argv or ("sleep", "600"),
        "env": {"PATH": "/usr/bin:/bin", **(env or {})},
        "cwd": str(root),
        "stop_grace_s": 5.0,
        "monitor_interval_s": 0.1,
        "log_root": str(root),
    }
    return HostSpec(**{**fields, **changes})


def python(*lines: str) -> tuple[str, ...]:
    """An argv that runs these lines."""
    return (sys.executable, "-S", "-c", "\n".join(lines))


@contextlib.asynccontextmanager
async def open_door(state_dir: Path) -> AsyncIterator[HostDoor]:
    """Where hosts dial in; closed at the end."""
    door = HostDoor(str(state_dir))
    await door.open()
    try:
        yield door
    finally:
        await door.close()


@contextlib.asynccontextmanager
async def running_host(root: Path, spec: HostSpec) -> AsyncIterator[Ear]:
    """A host that was welcomed. Killed at the end if it is still there."""
    ear = Ear()
    async with open_door(root) as door:
        ear.handle = await door.start_host(spec, str(root), ear)
        ear.handle.admit()
        try:
            yield ear
        finally:
            ear.handle.kill()
            await asyncio.wait_for(ear.ends(), PATIENCE_S)
