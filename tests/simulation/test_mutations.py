"""The simulation finds what it is there for: each of these faults, planted, breaks a promise soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from agentd.hub import core, rounds
from agentd.hub.contacts import Contacts
from agentd.hub.memberbook import MemberBook
from agentd.hub.observer import OwnTime
from agentd.hub.plan import RunPlan
from agentd.hub.state import HubRecord, RunState
from agentd.hub.turn import Turn
from tests.simulation.histories import make_history
from tests.simulation.replay import live
from tests.simulation.world import simulated

SOON = 400
"""Histories within which a planted fault is found."""


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    with simulated():
        yield


def forms_before_all_have_answered(turn: Turn) -> None:
    turn.change(owing={})
    rounds._settle(turn)


def counts_a_failure_twice(turn: Turn) -> bool:
    turn.change(restart_count=turn.state.restart_count + 2, failure_counted=True)
    return True


class JudgesAfterItsOwnPause(OwnTime):
    def tick(self, now: float) -> bool:
        super().tick(now)
        return True

    def at(self, now: float) -> float:
        return now


def begins_again_without_its_members(
    plan: RunPlan, now: float, record: HubRecord | None = None, *rest: Any
) -> RunState:
    return BEGIN(plan, now, replace(record, members=()) if record else None, *rest)


def holds_whoever_answers_for_a_lease(contacts: Contacts, sequence: int, now: float) -> Any:
    return contacts._prove(now + 3.0, now) if contacts._lease else None


def forgets_what_was_not_answered(_book: MemberBook, _now: float) -> list[Any]:
    return []


BEGIN = core.begin


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("agentd.hub.rounds._stop_if_answered", forms_before_all_have_answered),
        ("agentd.hub.rounds.pay_failure", counts_a_failure_twice),
        ("agentd.hub.hub.OwnTime", JudgesAfterItsOwnPause),
        ("agentd.hub.core.begin", begins_again_without_its_members),
        ("agentd.hub.contacts.Contacts.answered", holds_whoever_answers_for_a_lease),
        ("agentd.hub.memberbook.MemberBook.unanswered", forgets_what_was_not_answered),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_fault_is_found(place: str, fault: Callable[..., object]) -> None:
    with mock.patch(place, fault):
        found = next((seed for seed in range(SOON) if live(make_history(seed)).breach is not None), None)
    assert found is not None, f"{SOON} histories with {place} broken, and none was found"
