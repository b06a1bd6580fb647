"""Tells the hub of a run that nothing of it is left on this node, and nothing will come."""

from __future__ import annotations

import asyncio
import contextlib

from agentd.api.errors import AgentError, HubUnreachable
from agentd.api.types import RunSpec, RunStatus
from agentd.core.assignment import Assignment
from agentd.core.contact import Contact
from agentd.groups.ports import Rendezvous
from agentd.groups.records import RunRow
from agentd.hub.messages import RunFinished

PATIENCE_S = 60.0
"""A hub that is away for longer counts the node as lost by then: it is silent for too long."""


async def tell_gone(rendezvous: Rendezvous, row: RunRow, address: str) -> None:
    """Open a session without members, which takes their places from them; end it once the hub has heard."""
    ear = _Ear()
    session = rendezvous.session(
        row.hub_address,
        row.spec,
        row.incarnation,
        address=address,
        node_name=row.node_name,
        listener=ear,
    )
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ear.answered.wait(), PATIENCE_S)
    finally:
        await session.close()


class _Ear:
    """Waits for the first word of a hub; all others are for nobody."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()

    def on_welcome(self, spec: RunSpec) -> None:
        self.answered.set()

    def on_finished(self, finished: RunFinished) -> None:
        self.answered.set()

    def on_refused(self, error: AgentError) -> None:
        self.answered.set()

    def on_hub_timeout(self, error: HubUnreachable) -> None:
        self.answered.set()

    def on_assignment(self, role: str, assignment: Assignment) -> None: ...

    def on_stop_round(self, round_: int, reason: str) -> None: ...

    def on_waiting(self, role: str, reason: str) -> None: ...

    def on_view(self, status: RunStatus) -> None: ...

    def on_contact(self, contact: Contact) -> None: ...

    def on_hub_lost(self, problem: str, since: float) -> None: ...

    def on_hub_found(self) -> None: ...
