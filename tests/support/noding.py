"""Nodes of one test process: real journals, hubs, hosts, workers; only the wire between nodes is left out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentd.api.types import (
    TERMINAL,
    Command,
    EntrypointKind,
    Phase,
    RoleSpec,
    RunRequest,
    RunSpec,
    RunStatus,
)
from agentd.daemon.rendezvous import NodeRendezvous
from agentd.groups.archive import Archive
from agentd.groups.journal import Journal
from agentd.groups.registry import Registry
from agentd.hub.hub import Hub
from agentd.hub.links import HubLink, LocalHubLink

PATIENCE_S = 40.0


@dataclass
class Node:
    """One agentd without its gRPC."""

    name: str
    state_dir: Path
    registry: Registry
    hub: Hub
    journal: Journal

    async def run(self, spec: RunSpec, **changes: Any) -> tuple[RunStatus, bool]:
        """Run as a client would; by default a new request for this node's own hub."""
        request = RunRequest(request_id=uuid.uuid4().hex, spec=spec)
        return await self.registry.run(replace(request, **changes))

    async def reaches(self, run_id: str, reached: Callable[[RunStatus], object], what: str = "") -> RunStatus:
        """The first snapshot of a run that satisfies, waiting for it."""
        status = self.registry.status(run_id)
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while not reached(status):
            left = deadline - asyncio.get_running_loop().time()
            changed = self.registry.wait_change(run_id, status.incarnation, status.revision)
            try:
                status = await asyncio.wait_for(changed, max(left, 0.0))
            except asyncio.TimeoutError:
                raise AssertionError(f"waited in vain for {what or reached}; last seen: {status}") from None
        return status

    async def runs(self, run_id: str, round_: int = 1) -> RunStatus:
        """The run once this node's workers run in that round or a later one."""
        return await self.reaches(
            run_id,
            lambda s: _own(s, self.name, lambda g: g.phase is Phase.RUNNING and g.round >= round_),
            "running",
        )

    async def ends(self, run_id: str) -> RunStatus:
        """The run once it has ended here."""
        return await self.reaches(run_id, lambda status: status.phase in TERMINAL, "the end")


def _own(status: RunStatus, name: str, holds: Callable[[Any], bool]) -> bool:
    groups = [group for node in status.nodes if node.node_id == name for group in node.groups]
    return bool(groups) and all(holds(group) for group in groups)


class Neighbourhood:
    """Nodes that reach each other's hubs by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: dict[str, Node] = {}

    @contextlib.asynccontextmanager
    async def node(self, name: str = "a") -> AsyncIterator[Node]:
        """A node that is there until the end of the block; its state directory stays."""
        state_dir = self.root / name
        state_dir.mkdir(mode=0o700, exist_ok=True)
        journal = Journal(state_dir / "agentd.db")
        await journal.start()
        hub = Hub(name, journal, address=name)
        archive = Archive(state_dir / "agentd.db", name)
        rendezvous = _Near(self, hub, agent_uid=journal.agent_uid, daemon_starts=journal.daemon_starts)
        registry = Registry(
            node_id=name,
            state_dir=str(state_dir),
            journal=journal,
            rendezvous=rendezvous,
            advertise=lambda _hub: _address(name),
            archive=archive,
        )
        await registry.start()
        node = self.nodes[name] = Node(name, state_dir, registry, hub, journal)
        try:
            yield node
        finally:
            await registry.stop_now()
            await registry.close()
            archive.close()
            await journal.close()


class _Near(NodeRendezvous):
    """Reaches other nodes' hubs without a wire."""

    def __init__(self, near: Neighbourhood, hub: Hub, *, agent_uid: str, daemon_starts: int) -> None:
        super().__init__(hub, agent_uid=agent_uid, daemon_starts=daemon_starts)
        self._near = near

    def _link(self, hub_address: str) -> HubLink:
        return LocalHubLink(self._near.nodes[hub_address].hub) if hub_address else super()._link("")


async def _address(name: str) -> str:
    return name


def program(*lines: str, size: int = 2, role: str = "default", **changes: Any) -> RoleSpec:
    """A role whose workers run these lines of Python."""
    command = Command(
        entrypoint=sys.executable, arguments=("-S", "-c", "\n".join(lines)), kind=EntrypointKind.EXECUTABLE
    )
    return RoleSpec(role=role, command=command, local_world_size=size, **changes)


SLEEP = ("import time", "time.sleep(600)")


def run_spec(*lines: str, run_id: str = "job", **changes: Any) -> RunSpec:
    """A run of one role with two workers, by default of nothing for long."""
    roles = changes.pop("roles", None) or (program(*(lines or SLEEP)),)
    return RunSpec(run_id=run_id, roles=roles, **{"stop_grace": 5.0, **changes})


@contextlib.asynccontextmanager
async def one_node(root: Path) -> AsyncIterator[Node]:
    """A node alone in the world."""
    async with Neighbourhood(root).node("a") as node:
        yield node
