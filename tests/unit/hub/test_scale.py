"""What a round costs a hub grows with its members and no faster: counted, not timed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from agentd.api.types import RendezvousSpec
from agentd.hub.codec import response_to_message
from agentd.hub.core import begin
from agentd.hub.messages import SessionWelcome
from agentd.hub.plan import LISTED_LIMIT, make_plan
from agentd.hub.state import Beat, Journal, Send
from agentd.hub.view import compact, run_status
from tests.unit.hub.rig import START, Rig, make_spec

FEW, MANY = 200, 400
AS_MUCH = 2.0 * 1.05
"""Twice the members cost at most twice as much, and what a dictionary does when it grows."""


def names(count: int) -> list[str]:
    return [f"n{number:04}" for number in range(count)]


def live(count: int) -> Rig:
    """A run that forms, restarts once and succeeds."""
    rig = Rig(make_spec(names(count), max_restarts=1))
    rig.join(*names(count))
    rig.fail(names(count)[-1])
    rig.gone(*names(count))
    rig.done(*names(count))
    assert rig.state.round == 2
    assert rig.state.beat is Beat.ENDING or rig.state.beat is Beat.ENDED
    return rig


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """How many functions are called meanwhile, those of the interpreter included."""
    calls = [0]

    def count(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            calls[0] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def cost(count: int) -> Counter[str]:
    """All that a run of so many members makes a hub do."""
    found: Counter[str] = Counter()
    with counted_calls() as calls:
        rig = live(count)
        for effect in rig.log:
            found[type(effect).__name__] += 1
            if isinstance(effect, Send):
                found["bytes"] += response_to_message(effect.message).ByteSize()
            elif isinstance(effect, Journal):
                found["recorded members"] += len(effect.record.members)
    found["calls"] = calls[0]
    return found


def test_a_run_of_twice_the_members_costs_its_hub_twice_as_much() -> None:
    few, many = cost(FEW), cost(MANY)
    assert few["Send"] == FEW * len(("welcome", "place", "stop", "next place", "end"))
    assert few["Journal"] == many["Journal"], "what is journalled is of rounds, not of members"
    for what, spent in few.items():
        assert many[what] <= spent * AS_MUCH, f"{what}: {spent} for {FEW}, {many[what]} for {MANY}"


def test_a_view_that_goes_to_every_node_is_of_one_size_however_many_they_are() -> None:
    sizes = []
    for count in (FEW, MANY):
        rig = Rig(make_spec(names(2 * count)))
        rig.join(*names(count))
        sizes.append(len(repr(compact(run_status(rig.state)))))
    assert sizes[1] <= sizes[0] + 16


def test_looking_at_a_run_that_many_have_left_is_linear() -> None:
    def look(count: int) -> int:
        rig = Rig(make_spec(names(2 * count)))
        for name in names(count):
            rig.join(name)
            rig.leave(name)
        with counted_calls() as calls:
            assert len(rig.status.missing) == count
        return calls[0]

    look(FEW)
    assert look(MANY) <= look(FEW) * AS_MUCH


def test_welcome_names_the_nodes_of_a_small_run_only() -> None:
    small, large = (make_spec(names(count)) for count in (LISTED_LIMIT, LISTED_LIMIT + 1))
    assert make_plan(small, 1, hub_node_id="hub").welcome.spec == small
    role = replace(large.roles[0], nodes=large.nodes, local_world_size_by_node=dict.fromkeys(large.nodes, 2))
    large = replace(large, roles=(role,))
    assert make_plan(large, 1, hub_node_id="hub").welcome.spec == replace(
        large, nodes=(), roles=(replace(role, nodes=(), local_world_size_by_node={}),)
    )


def test_all_nodes_are_welcomed_with_the_same_message() -> None:
    rig = Rig(make_spec(names(3)))
    rig.join(*names(3))
    first, *others = (message for _, message in rig.take(SessionWelcome))
    assert all(other is first for other in others)
    assert all(response_to_message(other) is response_to_message(first) for other in others)


@pytest.mark.parametrize(
    ("members", "rendezvous", "heartbeat"),
    [
        (2, RendezvousSpec(), 1.0),
        (500, RendezvousSpec(), 1.0),
        (1000, RendezvousSpec(), 2.0),
        (4000, RendezvousSpec(), 2.5),
        (4000, RendezvousSpec(lease=30.0), 8.0),
        (4000, RendezvousSpec(lease=1.5), 1.0),
        (4000, RendezvousSpec(heartbeat=0.5), 0.5),
        (4, RendezvousSpec(min_members=4, max_members=4000), 1.0),
    ],
)
def test_nodes_of_large_runs_beat_more_slowly_but_twice_within_a_lease(
    members: int, rendezvous: RendezvousSpec, heartbeat: float
) -> None:
    plan = make_plan(make_spec(names(members), rendezvous=rendezvous), 1, hub_node_id="hub")
    assert plan.heartbeat == plan.welcome.heartbeat == heartbeat


def test_a_changed_state_is_what_replace_makes_of_it_and_leaves_the_old_one_alone() -> None:
    state = begin(make_plan(make_spec(["a"]), 1, hub_node_id="hub"), START)
    changed = state.but(round=3, reason="why")
    assert changed == replace(state, round=3, reason="why")
    assert (state.round, state.reason) == (0, "")
    with pytest.raises(AssertionError, match="no such state"):
        state.but(rounds=3)
