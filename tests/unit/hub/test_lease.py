"""The controller lease at the hub: who has one, what renews it, and what its end does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentd.api.types import Phase, RunSpec
from agentd.hub.core import due
from agentd.hub.state import Renewed
from tests.unit.hub.rig import Rig, make_spec

NOON = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC


def leased(seconds: float | None = 30.0) -> RunSpec:
    return replace(make_spec(["a", "b"]), controller_lease=seconds)


def test_a_run_that_nobody_renews_is_stopped_and_says_why() -> None:
    rig = Rig(leased())
    rig.join("a", "b")
    rig.wait(20)
    rig.post(Renewed(NOON))
    rig.wait(29.9)
    assert rig.phase() is Phase.RUNNING
    rig.wait(0.2)
    assert rig.phase() is Phase.STOPPING
    told = rig.finished()
    assert {told[node].phase for node in "ab"} == {Phase.STOPPED}
    assert told["a"].reason == (
        "its controller lease of 30 s has ended: last renewed at 2026-01-01 12:00:00 UTC"
    )
    rig.gone("a", "b")
    assert rig.phase() is Phase.STOPPED


def test_a_run_without_a_lease_goes_on_and_cannot_be_renewed() -> None:
    rig = Rig(leased(None))
    rig.join("a", "b")
    before = rig.state
    rig.post(Renewed(NOON))
    rig.wait(1e6)
    assert rig.state == before
    assert rig.phase() is Phase.RUNNING


@pytest.mark.parametrize("joined", [["a"], ["a", "b"]])
def test_the_lease_counts_in_every_phase_from_the_start_on(joined: list[str]) -> None:
    rig = Rig(leased(10))
    rig.join(*joined)
    rig.wait(10)
    assert rig.state.outcome is Phase.STOPPED
    assert "not renewed since it was started at" in rig.state.reason


def test_a_hub_that_begins_again_gives_a_whole_lease() -> None:
    rig = Rig(leased(10))
    rig.join("a", "b")
    rig.wait(9)
    again = Rig(leased(10), record=rig.records[-1])
    again.wait(9)
    assert again.phase() is Phase.RUNNING
    again.wait(1)
    assert again.state.outcome is Phase.STOPPED
    assert "not renewed since its hub began again at" in again.state.reason


def test_a_renewal_of_a_run_that_ends_changes_nothing() -> None:
    rig = Rig(leased(10))
    rig.join("a", "b")
    rig.terminate(reason="enough")
    before = rig.state
    rig.post(Renewed(NOON))
    assert rig.state == before
    rig.gone("a", "b")
    assert due(rig.state) is None
    rig.wait(100)
    assert (rig.phase(), rig.state.reason) == (Phase.STOPPED, "enough")


def test_what_the_last_tick_before_the_end_is_told_is_renewed() -> None:
    """Judged by ticks alone: a message of a member at the same moment ends nothing."""
    rig = Rig(leased(10))
    rig.join("a", "b")
    rig.now += 10
    rig.hello("c")
    assert rig.state.outcome is None
    rig.post(Renewed(NOON))
    rig.wait(9)
    assert rig.phase() is Phase.RUNNING
