"""How an agent of the elastic library comes to a run: the first to ask opens it, the others find it."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from dataclasses import field

from agentd.api import convert
from agentd.api.errors import AgentError, Code
from agentd.api.types import Command, RendezvousSpec, RoleSpec, RunRequest, RunSpec, RunStatus
from agentd.hub.links import CALL_TIMEOUT, ChannelFactory, call_once
from agentd.quickdata import dataclass
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub

FIRST_PAUSE = 0.1
LAST_PAUSE = 2.0
SHORTEST_CALL = 1.0

_PASSING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
"""Refusals that another try may change: nobody answers yet, or agentd is being replaced."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What every agent of one run asks for, in the same words."""

    run_id: str
    roles: tuple[str, ...]
    rendezvous: RendezvousSpec
    max_restarts: int
    max_membership_changes: int | None = None
    stop_grace: float | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Agents that have one in common never begin the run again after its end."""

    @property
    def request(self) -> RunRequest:
        """The Run that the hub's agentd gets. It compares the specs and names what differs."""
        spec = RunSpec(
            run_id=self.run_id,
            roles=tuple(RoleSpec(role=role, command=Command(entrypoint="")) for role in self.roles),
            rendezvous=self.rendezvous,
            max_restarts=self.max_restarts,
            max_membership_changes=self.max_membership_changes,
            stop_grace=self.stop_grace,
            external_agents=True,
        )
        return RunRequest(request_id=self.request_id, spec=spec)


async def open_run(
    endpoint: str, opening: Opening, channel_factory: ChannelFactory, patience: float
) -> RunStatus:
    """The run at the agentd of `endpoint`. Asks again, for `patience` seconds, while nobody takes it there.

    Raises the last `AgentError`.
    """
    message = convert.run_request_to_message(opening.request)
    loop = asyncio.get_running_loop()
    gives_up, pause = loop.time() + patience, FIRST_PAUSE
    while True:
        try:
            left = max(SHORTEST_CALL, min(CALL_TIMEOUT, gives_up - loop.time()))
            answer = await call_once(endpoint, channel_factory, AgentServiceStub, "Run", message, left)
            return convert.run_status_from_message(answer.status)
        except AgentError as error:
            if error.code not in _PASSING or loop.time() + pause > gives_up:
                raise
            told = log.warning if pause == FIRST_PAUSE else log.debug
            # As text: whoever keeps records must not keep the call, and all of gRPC with it.
            told("run %s cannot be opened yet: %s", opening.run_id, str(error))
        # Many agents may wait for one agentd: they shall not ask together.
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, LAST_PAUSE)
