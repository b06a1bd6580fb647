"""What random histories have brought to light about worker groups, each in as few words as it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentd.api.types import Phase
from agentd.core import group_events as ev
from agentd.core.group import HELD_UP, STOP_MARGIN, GroupState, HostState, step
from agentd.groups.left import as_member
from agentd.host.wire import Ready, ReportFrame, Started
from agentd.hub.messages import MemberCondition

OLD = GroupState(
    role="default",
    local_world_size=1,
    stop_grace=30.0,
    phase=Phase.RENDEZVOUS,
    host=HostState.LIVE,
    awaiting_place=True,
)
"""What the journal knows; its disk was slow when the group was given round 2."""


def test_a_round_whose_start_the_journal_missed_is_stopped_once_the_host_tells_of_it() -> None:
    state, effects = step(OLD, ev.RoundStopped(2, "b failed"), 0.0)
    assert effects == ()
    state, effects = step(state, ev.WorkersStarted(2, ()), 1.0)
    assert [type(effect) for effect in effects] == [ev.SendStopRound]
    assert (state.phase, state.overdue_at is not None) == (Phase.RESTARTING, True)


def test_a_round_that_nobody_stopped_goes_on_when_the_host_tells_of_it() -> None:
    state, effects = step(OLD, ev.WorkersStarted(2, ()), 1.0)
    assert (state.phase, effects) == (Phase.RUNNING, ())


@pytest.mark.parametrize(
    ("unread", "condition", "round_"),
    [
        ((), MemberCondition.JOINING, 0),
        ((Ready(round=0, master_port=5),), MemberCondition.JOINING, 0),
        ((Ready(round=0, master_port=5), Started(round=2, workers=())), MemberCondition.RUNNING, 2),
    ],
)
def test_the_hub_is_told_of_workers_that_only_the_host_has_written_down(
    unread: tuple[ReportFrame, ...], condition: MemberCondition, round_: int
) -> None:
    member = as_member(OLD, unread)
    assert member is not None
    assert (member.condition, member.round) == (condition, round_)
    ended = replace(OLD, phase=Phase.STOPPED)
    assert as_member(ended, unread) is None


def test_an_agentd_that_was_frozen_past_its_hosts_deadline_gives_the_host_its_time_again() -> None:
    running, _ = step(OLD, ev.WorkersStarted(2, ()), 0.0)
    stopping, _ = step(running, ev.RoundStopped(2, "b failed"), 0.0)
    due = OLD.stop_grace + STOP_MARGIN
    assert step(stopping, ev.Tick(), due)[1] == (ev.Sweep(),), "in time: the host is stuck"
    thawed, effects = step(stopping, ev.Tick(), due + 2 * HELD_UP)
    assert effects == ()
    assert step(thawed, ev.Tick(), thawed.overdue_at or 0.0)[1] == (ev.Sweep(),)
