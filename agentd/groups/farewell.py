"""How a run ends because that is wanted here, and what its hub hears of it.

Either it is to end the run for all, or this node's part alone ends, or nothing is left here and nothing will
come. A hub that is away is told again for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from agentd.api.errors import AgentError, HubUnreachable
from agentd.api.patience import within
from agentd.api.types import RunSpec, RunStatus, StopRequest, StopScope
from agentd.core.assignment import Assignment
from agentd.core.contact import Contact
from agentd.groups.background import Background
from agentd.groups.ports import Rendezvous
from agentd.groups.records import RunRow
from agentd.groups.run import NodeRun
from agentd.hub.messages import RunFinished

TERMINATE_TRIES_S = 60.0
"""How long a hub is told to end a run; the part of this node ends at the first failure."""
PATIENCE_S = 60.0
"""A hub that is away for longer counts the node as lost by then: it is silent for too long."""

_log = logging.getLogger(__name__)


class Farewells:
    """Sees runs out. What takes time goes on in the background."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        advertise: Callable[[str], Awaitable[str]],
        background: Background,
    ) -> None:
        self._rendezvous = rendezvous
        self._advertise = advertise
        self._background = background

    def carry_out(self, run: NodeRun, request: StopRequest) -> None:
        """Do what a Stop asks for, whatever time it takes."""
        reason = request.reason or "stopped by a caller"
        if request.scope is StopScope.LEAVE:
            run.leave(reason, request.grace)
        else:
            self._background.begin(self.terminate(run, reason, request.grace))

    async def terminate(self, run: NodeRun, reason: str, grace: float | None) -> None:
        """Tell the hub that the run is to end; whether it hears it or not, this node's part does."""
        hub, (run_id, incarnation) = run.part.hub_address, run.part.key
        patience = time.monotonic() + TERMINATE_TRIES_S
        while time.monotonic() < patience:
            try:
                await self._rendezvous.terminate(hub, run_id, incarnation, grace, reason)
                return
            except (AgentError, OSError) as error:
                _log.warning(
                    "the hub was not told to end the run", extra={"run_id": run_id, "problem": str(error)}
                )
                run.stop(reason, grace)
            await asyncio.sleep(1.0)

    async def tell_gone(self, row: RunRow) -> None:
        """Say, as soon as the hub hears it, that nothing of a run is left here."""
        address = await self._advertise(row.hub_address)
        self._background.begin(tell_gone(self._rendezvous, row, address))


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
            await within(PATIENCE_S, ear.answered.wait())
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
