"""The controller lease of a run: how it is renewed, and how often. `keeping` does it again and again."""

from __future__ import annotations

import logging
from typing import Final

from agentd.api import convert
from agentd.api.errors import AgentError, NoControllerLease, NotSupported, RunEnded, RunNotFound
from agentd.api.types import ControllerLease
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import wire
from agentd_client.failures import FleetUnreachable
from agentd_client.locate import Place
from agentd_client.nodes import Node
from agentd_client.plan import Call, Plan
from agentd_client.retry import call_one

RENEWALS_PER_LEASE: Final = 3
"""So that two may be lost on their way."""
LONGEST_RETRY_S: Final = 1.0

HOPELESS: Final = (RunEnded, NoControllerLease, RunNotFound, NotSupported)
"""What no other try changes."""

log = logging.getLogger(__name__)


def renew_call(
    target: str, run_id: str, incarnation: int, timeout_s: float
) -> Call[service.RenewLeaseResponse]:
    """RenewLease."""
    message = service.RenewLeaseRequest(run_id=run_id, incarnation=incarnation)
    return Call(target=target, method=wire.RENEW_LEASE, request=message, timeout_s=timeout_s)


def renew_at(target: str, run_id: str, incarnation: int, timeout_s: float) -> Plan[ControllerLease]:
    """Renew by one node."""
    answer = yield from call_one(renew_call(target, run_id, incarnation, timeout_s))
    return convert.controller_lease_from_message(answer)


def renew(place: Place, timeout_s: float) -> Plan[ControllerLease]:
    """Renew by the run's hub, or by the first of its nodes that can pass it on."""
    problems: dict[str, AgentError] = {}
    for node in place.nodes:
        try:
            return (yield from renew_at(node.target, place.run_id, place.incarnation, timeout_s))
        except (RunEnded, NoControllerLease):
            raise
        except AgentError as error:
            problems[node.name] = error
    raise _the_best(place.nodes, problems)


@dataclass(slots=True)
class Renewals:
    """What the renewals of a keeper have brought so far, and when the next one is due."""

    run_id: str
    lease: ControllerLease | None = None
    problem: AgentError | None = None

    @property
    def over(self) -> bool:
        """Whether there is nothing to keep any more."""
        return isinstance(self.problem, HOPELESS)

    @property
    def interval(self) -> float:
        """Seconds between two renewals, as far as the lease is known."""
        return LONGEST_RETRY_S if self.lease is None else self.lease.duration / RENEWALS_PER_LEASE

    @property
    def pause(self) -> float:
        """Seconds until the next one."""
        return self.interval if self.problem is None else min(self.interval, LONGEST_RETRY_S)

    def renewed(self, lease: ControllerLease) -> None:
        """It worked."""
        if self.problem is not None:
            log.info("the controller lease of run %s is renewed again", self.run_id)
        self.lease, self.problem = lease, None

    def failed(self, error: AgentError) -> None:
        """It did not; said once."""
        if self.problem is None and not isinstance(error, HOPELESS):
            log.warning("the controller lease of run %s could not be renewed: %s", self.run_id, str(error))
        self.problem = error


def _the_best(nodes: tuple[Node, ...], problems: dict[str, AgentError]) -> AgentError:
    known = [error for error in problems.values() if not isinstance(error, RunNotFound)]
    if len(problems) == 1 or not known:
        return next(iter(problems.values()))
    return known[0] if len(known) == 1 else FleetUnreachable(problems)
