"""Joins the registry to the hubs of its runs: the one in this process, and those of other nodes."""

from __future__ import annotations

import itertools

from agentd import __version__
from agentd.api.errors import RunNotFound, StaleIncarnation, Unreachable
from agentd.api.types import ControllerLease, RunSpec, RunStatus
from agentd.core import defaults
from agentd.groups.ports import Listener, Session
from agentd.hub.hub import Hub
from agentd.hub.links import GrpcHubLink, HubLink, LocalHubLink
from agentd.hub.member import MemberSession, NodeIdentity
from agentd.hub.record import read_record

_EPOCHS_PER_START = 1_000_000


class NodeRendezvous:
    """What `agentd.groups.ports.Rendezvous` asks for. An empty hub address means the hub here."""

    def __init__(self, hub: Hub, *, agent_uid: str, daemon_starts: int) -> None:
        """`daemon_starts` grows with each start of this node's agentd, and so do its session epochs."""
        self._hub = hub
        self._agent_uid = agent_uid
        self._epochs = itertools.count(daemon_starts * _EPOCHS_PER_START)

    def create(
        self, spec: RunSpec, incarnation: int, address: str, record: str = "", started_at: float = 0.0
    ) -> None:
        """Be the hub of a run, reached by others at `address`; again changes nothing.

        `record` is what an earlier agentd journalled of it, `started_at` when the run was started.
        """
        self._hub.address = address
        known = read_record(record) if record else None
        self._hub.create(spec, incarnation, known, started_at=started_at)

    def view(self, run_id: str, incarnation: int) -> RunStatus | None:
        """The whole of a run whose hub is here; None if it is not, or goes away."""
        try:
            return self._hub.describe(run_id, incarnation).status
        except (RunNotFound, StaleIncarnation, Unreachable):
            return None

    async def describe(self, hub_address: str, run_id: str, incarnation: int) -> tuple[RunStatus, RunSpec]:
        """A run as its hub knows it."""
        described = await self._link(hub_address).describe(run_id, incarnation)
        return described.status, described.spec

    async def terminate(
        self, hub_address: str, run_id: str, incarnation: int, grace: float | None, reason: str
    ) -> None:
        """Ask the hub for the end of a run."""
        await self._link(hub_address).terminate(run_id, incarnation, grace, reason)

    async def renew_lease(self, hub_address: str, run_id: str, incarnation: int) -> ControllerLease:
        """Tell the hub that somebody looks after a run."""
        return await self._link(hub_address).renew_lease(run_id, incarnation)

    def session(
        self,
        hub_address: str,
        spec: RunSpec,
        incarnation: int,
        *,
        address: str,
        node_name: str,
        listener: Listener,
        reattach_window: float | None = None,
    ) -> Session:
        """Speak with the hub of a run, again and again if need be, until it is closed.

        `reattach_window`: how long the run's workers here outlive a broken stream. None: one lease.
        """
        hub_timeout, lease = spec.rendezvous.hub_timeout, spec.rendezvous.lease
        lease = defaults.LEASE if lease is None else lease
        session = MemberSession(
            run_id=spec.run_id,
            incarnation=incarnation,
            identity=NodeIdentity(
                node_id=self._hub.node_id,
                agent_uid=self._agent_uid,
                address=address,
                node_name=node_name,
                version=__version__,
            ),
            link=self._link(hub_address),
            listener=listener,
            next_epoch=lambda: next(self._epochs),
            reattach_window=lease if reattach_window is None else reattach_window,
            hub_timeout=defaults.HUB_TIMEOUT if hub_timeout is None else hub_timeout,
        )
        session.start()
        return session

    async def close(self) -> None:
        """The hubs here go away; their members are told."""
        await self._hub.close()

    def _link(self, hub_address: str) -> HubLink:
        return GrpcHubLink(hub_address) if hub_address else LocalHubLink(self._hub)
