"""Who gets a place in a round, in which order, and what each of them is told.

The first round is ordered role-major (spec order), then by node list, then by arrival. Later ones keep the
survivors' order, so that rank 0 stays while its node lives, and put newcomers behind them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from agentd.api.errors import InvalidSpec
from agentd.api.targets import parse_target
from agentd.core.ranks import deal_ranks
from agentd.core.specs import Member
from agentd.hub.messages import Assignment
from agentd.hub.state import MemberKey, Offer, Place, RunState

LOOPBACK = "127.0.0.1"


def ready(state: RunState) -> Mapping[MemberKey, Offer]:
    """Those of the waiting that could take part now: nothing of an older round runs on their nodes."""
    if not state.behind:
        return state.waiting
    nodes = {key.node_id for key in state.behind}
    return {key: offer for key, offer in state.waiting.items() if key.node_id not in nodes}


def seat(state: RunState) -> list[MemberKey]:
    """The members of the next round by group rank, at most `max_members` of those that are ready."""
    able = ready(state)
    survivors = [key for key in state.order if key in able]
    known = frozenset(survivors)
    newcomers = [key for key in able if key not in known]
    # The sort is stable: members no list names stay in order of arrival.
    newcomers.sort(key=lambda key: _list_place(state, key))
    room = state.plan.max_members - len(survivors)
    taken = newcomers[: max(room, 0)]
    taken.sort(key=lambda key: (state.plan.roles[key.role], _list_place(state, key)))
    return (survivors + taken)[: state.plan.max_members]


def assign(state: RunState, members: Sequence[MemberKey], round_: int) -> dict[MemberKey, Place]:
    """The place of each member in a round, by group rank."""
    offers = [state.waiting[key] for key in members]
    dealt = deal_ranks(
        [(key.role, offer.local_world_size) for key, offer in zip(members, offers, strict=True)]
    )
    master = master_host(state.nodes[members[0].node_id].address)
    places: dict[MemberKey, Place] = {}
    for group_rank, (key, offer, bases) in enumerate(zip(members, offers, dealt, strict=True)):
        assignment = Assignment(
            role=key.role,
            round=round_,
            group_rank=group_rank,
            group_world_size=len(members),
            rank_base=bases.rank,
            world_size=bases.world_size,
            role_rank_base=bases.role_rank,
            role_world_size=bases.role_world_size,
            master_addr=master,
            master_port=offers[0].master_port,
            restart_count=state.restart_count,
            max_restarts=state.plan.spec.max_restarts,
        )
        places[key] = Place(assignment, offer)
    return places


def master_host(address: str) -> str:
    """The host of an advertised address, as workers dial it. A node with only a Unix socket is alone."""
    try:
        target = parse_target(address)
    except InvalidSpec:
        return LOOPBACK
    if target.is_unix or _is_unspecified(target.host):
        return LOOPBACK
    return target.host


def awaited(state: RunState) -> list[Member]:
    """Listed members that have not left."""
    return [member for member in state.plan.expected if member not in state.left]


def missing(state: RunState, present: Iterable[MemberKey]) -> list[str]:
    """Names of those who are awaited and not among `present`."""
    there = {as_listed(state, key) for key in present}
    return [state.plan.member_name(*member) for member in awaited(state) if member not in there]


def enough_may_come(state: RunState) -> bool:
    """Whether those who wait and those who are expected are enough for a round, unless they gave up."""
    plan = state.plan
    if not plan.expected:
        # Whoever likes may come, unless the run is one of a single node.
        return plan.max_members > len(plan.roles)
    may_come = plan.expected.keys() - {as_listed(state, key) for key in state.out}
    return len(may_come | {as_listed(state, key) for key in state.waiting}) >= plan.min_members


def as_listed(state: RunState, key: MemberKey) -> Member:
    """A member by the name that a node list has for its node."""
    node = state.nodes.get(key.node_id)
    return Member(node.name if node else key.node_id, key.role)


def _list_place(state: RunState, key: MemberKey) -> int:
    expected = state.plan.expected
    return expected.get(as_listed(state, key), len(expected))


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
