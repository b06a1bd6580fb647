"""What the registry needs of the rendezvous: the hubs here, the hubs elsewhere, a session with either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentd.api.errors import AgentError, HubUnreachable
from agentd.api.types import ControllerLease, Failure, RunSpec, RunStatus
from agentd.core.assignment import Assignment
from agentd.core.contact import Contact
from agentd.hub.messages import MemberState, RunFinished


class Member(Protocol):
    """A group's voice at the hub. Never blocks: what cannot be said now is said later."""

    def ready(self, role: str, local_world_size: int, master_port: int, round_: int) -> None: ...

    def gone(self, role: str, round_: int, master_port: int, unkillable: str = "") -> None: ...

    def failed(
        self, role: str, round_: int, failures: Sequence[tuple[Failure, float]], reason: str
    ) -> None: ...

    def done(self, role: str, round_: int) -> None: ...

    def leave(self, role: str, reason: str, *, failed: bool = False) -> None: ...


class Session(Member, Protocol):
    """A node's session with the hub of a run."""

    def resume(self, state: MemberState, restart_count: int = 0) -> None:
        """Speak for a member as an earlier agentd left it. Before anything else is said of it."""

    async def close(self) -> None: ...


class Listener(Protocol):
    """Hears the hub of one run. Called on the event loop; must not block."""

    def on_welcome(self, spec: RunSpec) -> None: ...

    def on_assignment(self, role: str, assignment: Assignment) -> None: ...

    def on_stop_round(self, round_: int, reason: str) -> None: ...

    def on_waiting(self, role: str, reason: str) -> None: ...

    def on_finished(self, finished: RunFinished) -> None: ...

    def on_view(self, status: RunStatus) -> None: ...

    def on_contact(self, contact: Contact) -> None: ...

    def on_hub_lost(self, problem: str, since: float) -> None: ...

    def on_hub_found(self) -> None: ...

    def on_hub_timeout(self, error: HubUnreachable) -> None: ...

    def on_refused(self, error: AgentError) -> None: ...


class Rendezvous(Protocol):
    """The hubs of all runs; an empty address is the hub of this node."""

    def create(
        self, spec: RunSpec, incarnation: int, address: str, record: str = "", started_at: float = 0.0
    ) -> None:
        """Be the hub of a run, reached by others at `address`; again changes nothing.

        `record` is what an earlier agentd journalled of it, `started_at` when the run was started.
        """

    def view(self, run_id: str, incarnation: int) -> RunStatus | None:
        """The whole of a run whose hub is here."""

    async def describe(self, hub_address: str, run_id: str, incarnation: int) -> tuple[RunStatus, RunSpec]:
        """A run as its hub knows it. Raises `RunNotFound`, `HubUnreachable`."""

    async def terminate(
        self, hub_address: str, run_id: str, incarnation: int, grace: float | None, reason: str
    ) -> None:
        """Ask the hub for the end of a run."""

    async def renew_lease(self, hub_address: str, run_id: str, incarnation: int) -> ControllerLease:
        """Tell the hub that somebody looks after a run. Raises `NoControllerLease`, `RunEnded`."""

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

    async def close(self) -> None:
        """The hubs here go away; their members are told."""
