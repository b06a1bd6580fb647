"""The table of a group's life is total, its ends are final, and docs/lifecycle.md shows it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.api.types import TERMINAL, Phase, WorkerState
from agentd.core.lifecycle import (
    END,
    TRANSITIONS,
    Event,
    as_markdown,
    least_advanced,
    transition,
    worker_state,
)

DOCS = Path(__file__).parents[3] / "docs" / "lifecycle.md"


def test_every_phase_answers_every_event() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert all(set(answers) == set(Event) for answers in TRANSITIONS.values())


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_a_terminal_phase_is_never_left(phase: Phase) -> None:
    assert {transition(phase, event) for event in Event} == {phase}


@pytest.mark.parametrize("phase", sorted(set(Phase) - TERMINAL))
def test_every_live_phase_can_end_in_every_way(phase: Phase) -> None:
    assert {transition(phase, event) for event in END.values()} == TERMINAL


def test_nothing_but_an_end_leads_to_a_terminal_phase() -> None:
    ends = set(END.values())
    for phase in set(Phase) - TERMINAL:
        assert all(transition(phase, event) not in TERMINAL for event in set(Event) - ends)


def test_a_stopping_group_never_runs_again() -> None:
    assert {transition(Phase.STOPPING, event) for event in Event} == {Phase.STOPPING, *TERMINAL}


def test_every_live_phase_is_reached_from_pending() -> None:
    reached, frontier = {Phase.PENDING}, [Phase.PENDING]
    while frontier:
        phase = frontier.pop()
        new = {transition(phase, event) for event in Event} - reached
        reached |= new
        frontier += new
    assert reached == set(Phase)


def test_the_worker_state_says_unhealthy_only_while_running() -> None:
    unhealthy = {phase for phase in Phase if worker_state(phase, unhealthy=True) is WorkerState.UNHEALTHY}
    assert unhealthy == {Phase.RUNNING}
    assert worker_state(Phase.RUNNING) is WorkerState.HEALTHY


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([], Phase.PENDING),
        ([Phase.RUNNING, Phase.RENDEZVOUS], Phase.RENDEZVOUS),
        ([Phase.SUCCEEDED, Phase.RUNNING], Phase.RUNNING),
        ([Phase.SUCCEEDED, Phase.FAILED], Phase.FAILED),
        ([Phase.DONE, Phase.STOPPING], Phase.STOPPING),
    ],
)
def test_a_node_is_where_its_slowest_group_is(phases: list[Phase], expected: Phase) -> None:
    assert least_advanced(phases) is expected


def test_the_document_shows_the_table() -> None:
    assert as_markdown() in DOCS.read_text(encoding="utf-8"), (
        "docs/lifecycle.md is stale: put agentd.core.lifecycle.as_markdown() there"
    )
