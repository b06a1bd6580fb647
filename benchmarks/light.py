"""`python -m benchmarks.light COUNT`: that many nodes in one process, each a server on a port of its own.

A thousand agentds do not fit into a small machine. These have agentd's own servicers, sessions and hub, and
workers that are only numbers: no journal, no hosts, no processes. Their targets stand on standard output, one
on a line; they are gone when standard input ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

from agentd.api.errors import AgentError, HubUnreachable, NotSupported, RunNotFound
from agentd.api.targets import Target
from agentd.api.types import (
    TERMINAL,
    ControllerLease,
    GroupStatus,
    Phase,
    RunRequest,
    RunSpec,
    RunStatus,
    StopRequest,
    StreamEnd,
    WorkerState,
    WorkerStatus,
)
from agentd.core.contact import Contact
from agentd.groups.snapshot import compose, own_part, without_hub
from agentd.hub.hub import Hub
from agentd.hub.links import LocalHubLink
from agentd.hub.member import MemberSession, NodeIdentity
from agentd.hub.messages import Assignment, RunFinished
from agentd.hub.state import HubRecord
from agentd.rpc.agent import AgentServicer
from agentd.rpc.rendezvous import RendezvousServicer
from agentd.rpc.server import bind, make_server
from agentd.rpc.streams import OpenStreams
from agentd.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from agentd.v1.rendezvous_service_pb2_grpc import add_RendezvousServiceServicer_to_server

WORKERS: Final = 8
FIRST_PORT: Final = 20_000


class NoJournal:
    """Nothing outlives these nodes."""

    async def hub_announced(self, run_id: str, incarnation: int, record: HubRecord, patience: float) -> None:
        """Forget it."""


class Part:
    """One node's part of one run."""

    def __init__(self, node: LightNode, request: RunRequest, incarnation: int, hub: Hub) -> None:
        self._node = node
        self.hub_here = hub is node.hub
        self._incarnation = incarnation
        self._run_id = request.spec.run_id
        self._name = request.node_name
        self._told = without_hub(
            request.spec, incarnation, request.hub_address or node.address, started_at=time.time()
        )
        self._group = GroupStatus(
            role=request.spec.roles[0].role, phase=Phase.RENDEZVOUS, worker_state=WorkerState.INIT
        )
        self.session = MemberSession(
            run_id=self._run_id,
            incarnation=incarnation,
            identity=NodeIdentity(
                node_id=node.node_id,
                agent_uid=f"uid-{node.node_id}",
                address=node.address,
                node_name=request.node_name,
            ),
            link=LocalHubLink(hub),
            listener=self,
            next_epoch=iter(range(1, 1_000_000)).__next__,
        )
        self.session.start()
        self.session.ready(self._group.role, WORKERS, FIRST_PORT + node.number, 0)

    @property
    def status(self) -> RunStatus:
        """The run as this node shows it."""
        told = self._told
        if self.hub_here:
            told = replace(self._node.hub.describe(self._run_id, self._incarnation).status, from_hub=True)
        own = own_part(self._node.node_id, self._node.address, self._name, (self._group,), "")
        return compose(told, own, None, hub_here=self.hub_here)

    def on_assignment(self, role: str, assignment: Assignment) -> None:
        workers = tuple(
            WorkerStatus(
                role=role,
                rank=assignment.rank_base + local_rank,
                local_rank=local_rank,
                role_rank=assignment.role_rank_base + local_rank,
                pid=1000 + local_rank,
                state=WorkerState.HEALTHY,
                started_at=time.time(),
                log_dir=f"/var/lib/agentd/runs/{self._run_id}/{role}/{local_rank}",
            )
            for local_rank in range(WORKERS)
        )
        self._group = replace(
            self._group,
            phase=Phase.RUNNING,
            worker_state=WorkerState.HEALTHY,
            group_rank=assignment.group_rank,
            round=assignment.round,
            workers=workers,
            local_world_size=WORKERS,
        )

    def on_stop_round(self, round_: int, reason: str) -> None:
        self.session.gone(self._group.role, round_, FIRST_PORT + self._node.number)

    def on_finished(self, finished: RunFinished) -> None:
        self._told = replace(self._told, phase=finished.phase, reason=finished.reason, from_hub=True)
        self._group = replace(self._group, phase=finished.phase, worker_state=WorkerState.STOPPED)
        self.session.gone(self._group.role, self._group.round, 0)

    def on_view(self, status: RunStatus) -> None:
        if self._told.phase not in TERMINAL:
            self._told = replace(status, from_hub=True)

    def on_welcome(self, spec: RunSpec) -> None:
        """What the run is, is known."""

    def on_waiting(self, role: str, reason: str) -> None:
        """No node is a spare here."""

    def on_contact(self, contact: Contact) -> None:
        """There is no round file here."""

    def on_hub_lost(self, problem: str, since: float) -> None:
        """The hub is in this very process."""

    def on_hub_found(self) -> None:
        """The hub is in this very process."""

    def on_hub_timeout(self, error: HubUnreachable) -> None:
        """The hub is in this very process."""

    def on_refused(self, error: AgentError) -> None:
        self._told = replace(self._told, phase=Phase.FAILED, reason=str(error))


class LightNode:
    """What the servicers ask of a node, as far as a run's start, status and end need it."""

    def __init__(self, number: int, hubs: dict[str, Hub]) -> None:
        self.number = number
        self.node_id = f"n{number:04}"
        self.address = ""
        self.hub = Hub(self.node_id, NoJournal())
        self._hubs = hubs
        self._parts: dict[str, Part] = {}

    async def serve(self) -> Any:
        """Answer on a free port."""
        server = make_server(self.node_id)
        (bound,) = bind(server, [Target(host="127.0.0.1", port=0)])
        self.address = self.hub.address = str(bound)
        self._hubs[self.address] = self.hub
        # The servicers are typed for the whole of a node, the stubs for both kinds of server.
        light: Any = self
        any_server: Any = server
        servicer = AgentServicer(light, light, light, light, light, light, OpenStreams())
        add_AgentServiceServicer_to_server(servicer, any_server)
        add_RendezvousServiceServicer_to_server(RendezvousServicer(self.hub), any_server)
        await server.start()
        return server

    async def run(self, request: RunRequest) -> tuple[RunStatus, bool]:
        incarnation = request.incarnation or int(time.time() * 1000)
        hub = self._hubs[request.hub_address or self.address]
        if hub is self.hub:
            hub.create(request.spec, incarnation)
        part = self._parts[request.spec.run_id] = Part(self, request, incarnation, hub)
        return part.status, True

    async def recall(self, run_id: str) -> None:
        """What has ended is known as long as the process lives."""

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus:
        part = self._parts.get(run_id)
        if part is None:
            raise RunNotFound(run_id, self.node_id)
        return part.status

    def runs(self, include_ended: bool) -> list[RunStatus]:
        return [part.status for part in self._parts.values()]

    async def stop(self, request: StopRequest, caller: str = "") -> RunStatus:
        part = self._parts[request.run_id]
        if part.hub_here:
            self.hub.terminate(request.run_id, request.incarnation, request.grace, request.reason)
        return part.status

    def watch(self, *_: object) -> AsyncIterator[RunStatus | StreamEnd]:
        raise NotSupported("Watch", "a light node")

    async def signal(self, *_: object) -> tuple[int, ...]:
        raise NotSupported("Signal", "a light node")

    async def renew_lease(self, run_id: str, incarnation: int = 0) -> ControllerLease:
        raise NotSupported("RenewLease", "a light node")

    def health(self, run_id: str, role: str | None) -> bool:
        return True


async def serve(count: int) -> None:
    """Be so many nodes until standard input ends."""
    hubs: dict[str, Hub] = {}
    nodes = [LightNode(number, hubs) for number in range(count)]
    servers = [await node.serve() for node in nodes]
    print(*(node.address for node in nodes), sep="\n", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.stop(None) for server in servers))


def main() -> None:
    """Serve as asked."""
    logging.disable()
    # Rings of a short life are no matter of the figure.
    gc.disable()
    asyncio.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
