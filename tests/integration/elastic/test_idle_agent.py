"""An agent whose rendezvous wakes it looks at nothing in vain; any other one is asked at intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from agentd.elastic.agent.server.api import WorkerState
from agentd.elastic.rendezvous.coordinated import CoordinatedRendezvous, WakingRendezvous
from agentd.host.rendezvous import HostRendezvous
from tests.integration.elastic.rig import Rig, ScriptedRendezvous

INTERVAL_S = 0.002


@dataclass
class Asked(ScriptedRendezvous):
    """Counts how often it is asked whether the round is over."""

    asked: int = 0
    often: Path | None = None
    """Made when it was asked twenty times."""

    def round_over(self) -> bool:
        self.asked += 1
        if self.often is not None and self.asked == 20:
            self.often.touch()
        return super().round_over()


class Waking(Asked):
    """Promises to wake the agent."""

    def wakes_waiter(self) -> None:
        """It does: the test says so from inside the wait."""


def asked_while_a_worker_runs(rig: Rig, rendezvous: Asked, script: str = "sleep 0.5") -> int:
    rig.rendezvous = rendezvous
    agent = rig.shell(script)
    agent.get_worker_group().spec.monitor_interval = INTERVAL_S
    assert agent.run().state is WorkerState.SUCCEEDED
    return rendezvous.asked


def test_one_that_wakes_its_agent_is_asked_after_events_only(rig: Rig) -> None:
    assert asked_while_a_worker_runs(rig, Waking(rig.waiter, 0)) <= 10


def test_one_that_does_not_is_asked_again_and_again(rig: Rig) -> None:
    rendezvous = Asked(rig.waiter, 0, often=rig.folder / "often")
    until_often = 'until [ -e "$FOLDER/often" ]; do sleep 0.02; done'
    assert asked_while_a_worker_runs(rig, rendezvous, until_often) >= 20


def test_one_that_wakes_its_agent_ends_a_round_at_once(rig: Rig) -> None:
    """Without an interval there is no later look that would find it."""
    rig.rendezvous = rendezvous = Waking(rig.waiter, 0)
    agent = rig.shell('test -e "$FOLDER/again" && exit 0; : > "$FOLDER/up"; exec sleep 1000')
    agent.get_worker_group().spec.monitor_interval = 1000.0

    def next_round() -> None:
        (rig.folder / "again").touch()
        rendezvous.over = True

    rig.when_file("up", next_round)
    assert agent.run().state is WorkerState.SUCCEEDED
    assert rendezvous.rounds == 2


@pytest.mark.parametrize("promised", [CoordinatedRendezvous, WakingRendezvous])
def test_a_hosts_rendezvous_is_one_of_them(promised: type) -> None:
    assert issubclass(HostRendezvous, promised)
