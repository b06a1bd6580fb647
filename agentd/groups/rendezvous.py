"""The registry's way to hubs: the one of this node, and those of others by their address."""

from __future__ import annotations

import json
from collections.abc import Callable

from agentd.api.errors import RunNotFound, StaleIncarnation
from agentd.api.types import Failure, Phase, RunSpec, RunStatus
from agentd.core import defaults
from agentd.groups.ports import Listener, Session
from agentd.hub.hub import Hub
from agentd.hub.links import GrpcHubLink, HubLink, LocalHubLink
from agentd.hub.member import MemberSession, NodeIdentity
from agentd.hub.state import HubRecord

_EPOCHS_PER_START = 1_000_000


class HubRendezvous:
    """Implements `groups.ports.Rendezvous` with `agentd.hub`."""

    def __init__(
        self,
        hub: Hub,
        *,
        node_id: str,
        agent_uid: str,
        daemon_starts: int,
        version: str = "",
        connect_hub: Callable[[str], HubLink] = GrpcHubLink,
    ) -> None:
        """`daemon_starts` grows with each agentd of this state directory; session epochs grow with it."""
        self._hub = hub
        self._node_id = node_id
        self._agent_uid = agent_uid
        self._version = version
        self._connect_hub = connect_hub
        self._epoch = daemon_starts * _EPOCHS_PER_START

    def create(self, spec: RunSpec, incarnation: int, address: str, record: str = "") -> None:
        self._hub.address = address
        self._hub.create(spec, incarnation, _read_record(record) if record else None)

    def view(self, run_id: str, incarnation: int) -> RunStatus | None:
        try:
            return self._hub.describe(run_id, incarnation).status
        except (RunNotFound, StaleIncarnation):
            return None

    async def describe(self, hub_address: str, run_id: str, incarnation: int) -> tuple[RunStatus, RunSpec]:
        described = await self._link(hub_address).describe(run_id, incarnation)
        return described.status, described.spec

    async def terminate(
        self, hub_address: str, run_id: str, incarnation: int, grace: float | None, reason: str
    ) -> None:
        await self._link(hub_address).terminate(run_id, incarnation, grace, reason)

    def session(
        self,
        hub_address: str,
        spec: RunSpec,
        incarnation: int,
        *,
        address: str,
        node_name: str,
        listener: Listener,
    ) -> Session:
        rendezvous = spec.rendezvous
        identity = NodeIdentity(
            node_id=self._node_id,
            agent_uid=self._agent_uid,
            address=address,
            node_name=node_name,
            version=self._version,
        )
        session = MemberSession(
            run_id=spec.run_id,
            incarnation=incarnation,
            identity=identity,
            link=self._link(hub_address),
            listener=listener,
            next_epoch=self._next_epoch,
            # Workers end with their agentd, so a node that is silent for longer has none.
            reattach_window=defaults.LEASE if rendezvous.lease is None else rendezvous.lease,
            hub_timeout=defaults.HUB_TIMEOUT if rendezvous.hub_timeout is None else rendezvous.hub_timeout,
        )
        session.start()
        return session

    async def close(self) -> None:
        await self._hub.close()

    def _link(self, hub_address: str) -> HubLink:
        return self._connect_hub(hub_address) if hub_address else LocalHubLink(self._hub)

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch


def _read_record(text: str) -> HubRecord:
    """A record as `Journal.hub_announced` wrote it."""
    fields = json.loads(text)
    failure, outcome = fields.get("first_failure"), fields.get("outcome")
    fields["first_failure"] = Failure(**failure) if failure else None
    fields["outcome"] = Phase(outcome) if outcome else None
    return HubRecord(**fields)
