"""What is left of an ended run: enough to tell late members that it is over, and callers how it ended."""

from __future__ import annotations

from collections.abc import Callable

from agentd.api.types import Phase, RunSpec, RunStatus
from agentd.hub.messages import MemberMessage, RunFinished, RunView, SessionHello, SessionWelcome
from agentd.hub.plan import RunPlan
from agentd.hub.session import HubSession
from agentd.hub.view import COMPACT_LIMIT, compact
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True)
class Tombstone:
    """An ended run. Of bounded size, whatever the run's was."""

    spec: RunSpec
    status: RunStatus
    welcome: SessionWelcome

    def open(self, hello: SessionHello, own_time: Callable[[], float]) -> HubSession:
        """A session that says the run is over, and ends."""
        session = HubSession(self, hello, [role.role for role in self.spec.roles], own_time)
        session.tell(self.welcome)
        session.tell(self.farewell)
        session.tell(RunView(status=compact(self.status)))
        session.end()
        return session

    @property
    def farewell(self) -> RunFinished:
        """What a late member is told."""
        status = self.status
        failed = status.phase is Phase.FAILED
        return RunFinished(
            phase=status.phase,
            first_failure=status.first_failure if failed else None,
            reason=status.reason,
        )

    def heard(self, session: HubSession, message: MemberMessage) -> None:
        """Nothing a late member says changes anything."""

    def stream_over(self, session: HubSession) -> None:
        """Nobody waited for it."""


def bury(plan: RunPlan, status: RunStatus) -> Tombstone:
    """The tombstone of a run by its last status."""
    small = len(status.nodes) <= COMPACT_LIMIT
    return Tombstone(spec=plan.spec, status=status if small else compact(status), welcome=plan.welcome)
