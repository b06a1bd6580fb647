"""Who hears what a node's session learns from its hub."""

from __future__ import annotations

from typing import Protocol

from agentd.api.errors import AgentError, HubUnreachable
from agentd.api.types import RunSpec, RunStatus
from agentd.core.contact import Contact
from agentd.hub.messages import Assignment, RunFinished


class MemberListener(Protocol):
    """Whoever owns the node's worker groups of the run. Called on the event loop; must not block."""

    def on_welcome(self, spec: RunSpec) -> None:
        """The hub took the session for the first time."""

    def on_assignment(self, role: str, assignment: Assignment) -> None:
        """The member has a place in a round; answer with its workers, or with `failed`."""

    def on_stop_round(self, round_: int, reason: str) -> None:
        """Stop what runs of the round; `gone` (or `ready`) answers for each member that took part."""

    def on_waiting(self, role: str, reason: str) -> None:
        """The member is a spare for now."""

    def on_finished(self, finished: RunFinished) -> None:
        """The run is over: stop what runs. Comes again when the grace was shortened."""

    def on_view(self, status: RunStatus) -> None:
        """The run as a whole has changed; the last one after `on_finished` has the final phase."""

    def on_contact(self, contact: Contact) -> None:
        """The hub answered, or a round must go: how long each may act. Comes before the hub's word itself."""

    def on_hub_lost(self, problem: str, since: float) -> None:
        """The stream broke, and why. Nothing needs to stop. `since`: when the hub spoke last, by the wall."""

    def on_hub_found(self) -> None:
        """It is there again."""

    def on_hub_timeout(self, error: HubUnreachable) -> None:
        """A member has needed the hub for too long. The session is over."""

    def on_refused(self, error: AgentError) -> None:
        """The hub does not take this node. The session is over."""
