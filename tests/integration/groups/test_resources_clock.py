"""A clock that jumps by a day, either way: what runs goes on, what ended stays, numbers only grow."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from agentd.api.types import Phase
from agentd.core.retention import Policy
from agentd.daemon.clock import ClockKeeper
from agentd.daemon.clock import reading as real_reading
from agentd.groups.conditions import Conditions
from agentd.groups.retention import Retention
from tests.support.noding import Node, one_node, run_spec

pytestmark = pytest.mark.asyncio

DAY = 86_400.0


class Clock:
    """Everybody's time of day in this process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.set_by = 0.0
        real = time.time
        patch.setattr(time, "time", lambda: real() + self.set_by)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def ended_run(node: Node, run_id: str) -> int:
    """The incarnation of a run that is over."""
    await node.run(run_spec("pass", run_id=run_id))
    status = await node.ends(run_id)
    assert status.phase is Phase.SUCCEEDED
    return status.incarnation


@pytest.mark.parametrize("step", [DAY, -DAY], ids=["ahead", "back"])
async def test_what_runs_goes_on_restarts_and_stops_as_ever(
    tmp_path: Path, clock: Clock, step: float
) -> None:
    async with one_node(tmp_path) as node:
        spec = run_spec(max_restarts=3)
        await node.run(spec)
        first = await node.runs("job")
        clock.set_by = step
        # Longer than a lease would be by the time of day, and long enough for anybody to act on it.
        await asyncio.sleep(1.2)
        now = node.registry.status("job")
        assert (now.phase, now.round, now.restart_count) == (Phase.RUNNING, 1, 0)
        os.kill(first.nodes[0].groups[0].workers[0].pid, signal.SIGKILL)
        second = await node.runs("job", 2)
        assert (second.restart_count, second.missing) == (1, ())
        before = await ended_run(node, "short")
        clock.set_by = 0.0
        assert await ended_run(node, "short") > before


async def test_a_jump_ahead_forgets_nothing_and_a_clock_that_stays_there_does(
    tmp_path: Path, clock: Clock
) -> None:
    policy = Policy(age=3600.0, size=1 << 40)
    async with one_node(tmp_path) as node:
        conditions = Conditions()
        keeper = ClockKeeper(node.journal, conditions)
        retention = Retention(str(node.state_dir), policy, node.registry, keeper.now)
        credulous = Retention(str(node.state_dir), policy, node.registry, time.time)
        try:
            keeper.step()
            await ended_run(node, "short")
            await node.journal.write()
            clock.set_by = 30 * DAY
            keeper.step()
            assert "720.0 h" in conditions.details["CLOCK_JUMPED"]
            await retention.step()
            assert node.registry.status("short").phase is Phase.SUCCEEDED
            # Had it been believed, nothing would be left of the run.
            await credulous.step()
            assert not [run for run in node.registry.runs(include_ended=True) if run.run_id == "short"]
            clock.set_by = 0.0
            keeper.step()
            assert conditions.details == {}
        finally:
            retention.close()
            credulous.close()


async def test_a_jump_while_no_agentd_was_there_is_seen_by_the_next(tmp_path: Path, clock: Clock) -> None:
    async with one_node(tmp_path) as node:
        ClockKeeper(node.journal, Conditions()).step()
    clock.set_by = 30 * DAY
    async with one_node(tmp_path) as node:
        conditions = Conditions()
        keeper = ClockKeeper(node.journal, conditions)
        keeper.step()
        assert "CLOCK_JUMPED" in conditions.details
        assert abs(keeper.now() + 30 * DAY - real_reading().wall) < 60
