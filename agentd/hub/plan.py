"""What a spec means to the hub: who is expected, how many there may be, and every time with its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agentd.api.types import RunSpec
from agentd.core import defaults
from agentd.core.specs import Member, expected_members, member_bounds
from agentd.hub.messages import SessionWelcome
from agentd.quickdata import dataclass

BEATS = 500
"""Heartbeats a hub hears of one run in a second, if nobody says how often its nodes beat: more of them would
take a core for themselves."""

LISTED_LIMIT = 64
"""Nodes of a run that a welcome lists: each of N nodes would get the names of N nodes."""
RETURN_TIME = 3.0
"""Within it a node that lost its hub dials again: its longest pause between two tries, and a little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A spec with everything filled in. Durations are seconds; sizes count members."""

    spec: RunSpec
    incarnation: int
    hub_node_id: str
    hub_address: str
    started_at: float
    """When the run was started, by the wall clock."""
    hub_since: float
    """When this hub began with it: later than the run, if it goes on where an earlier agentd was."""
    roles: Mapping[str, int]
    """Role to its place in the spec."""
    expected: Mapping[Member, int]
    """Members of the node list, in rank order: role-major, then list order. Empty: membership is open."""
    min_members: int
    max_members: int
    heartbeat: float
    lease: float
    join_timeout: float
    last_call: float
    stop_grace: float
    welcome: SessionWelcome
    """The first word to each node."""
    controller_lease: float | None = None
    """None: nobody needs to renew the run."""

    @property
    def answer_limit(self) -> float:
        """Longest a live node may take to say that a round is gone, without the grace of that stop."""
        return defaults.KILL_WAIT + self.lease

    @property
    def return_window(self) -> float:
        """How long a hub that began again waits for a node that may run its last round, if another is due."""
        return max(self.lease, RETURN_TIME)

    @property
    def reattach_window(self) -> float:
        """How long it waits for one while the round goes on."""
        wished = self.spec.rendezvous.reattach_window
        if wished is None:
            # Agents in processes of their own are lost with these, and so are their workers.
            wished = 0.0 if self.spec.external_agents else defaults.REATTACH_WINDOW
        return max(wished, self.return_window)

    def member_name(self, name: str, role: str) -> str:
        """A member as people name it: the node alone where there is one role."""
        return name if len(self.roles) == 1 else f"{name}/{role}"


def make_plan(
    spec: RunSpec,
    incarnation: int,
    *,
    hub_node_id: str,
    hub_address: str = "",
    started_at: float = 0.0,
    hub_since: float = 0.0,
) -> RunPlan:
    """Fill in a spec that admission has found valid."""
    rendezvous = spec.rendezvous
    expected = expected_members(spec)
    fewest, most = member_bounds(spec)
    lease = _or(rendezvous.lease, defaults.LEASE)
    heartbeat = _or(rendezvous.heartbeat, max(defaults.HEARTBEAT, min(fewest / BEATS, lease / 2)))
    return RunPlan(
        spec=spec,
        incarnation=incarnation,
        hub_node_id=hub_node_id,
        hub_address=hub_address,
        started_at=started_at,
        hub_since=hub_since,
        roles={role.role: index for index, role in enumerate(spec.roles)},
        expected={member: index for index, member in enumerate(expected)},
        min_members=fewest,
        max_members=most,
        heartbeat=heartbeat,
        lease=lease,
        welcome=SessionWelcome(
            hub_node_id=hub_node_id, heartbeat=heartbeat, lease=lease, spec=_without_long_lists(spec)
        ),
        join_timeout=_or(rendezvous.join_timeout, defaults.JOIN_TIMEOUT),
        last_call=_or(rendezvous.last_call, defaults.LAST_CALL),
        stop_grace=_or(spec.stop_grace, defaults.STOP_GRACE),
        controller_lease=spec.controller_lease,
    )


def _without_long_lists(spec: RunSpec) -> RunSpec:
    """What is the same for every node: of which others there are each knows from its own Run."""
    if len(spec.nodes) <= LISTED_LIMIT:
        return spec
    roles = (replace(role, nodes=(), local_world_size_by_node={}) for role in spec.roles)
    return replace(spec, nodes=(), roles=tuple(roles))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
