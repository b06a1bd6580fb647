"""Drains and leases over real channels to fake agentds, the same for the synchronous and the asyncio form."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from agentd_client import (
    AgentClient,
    Command,
    DrainMode,
    DrainProgress,
    Fleet,
    NoControllerLease,
    NodeBack,
    NodeDrained,
    NodeProblem,
    Phase,
    RoleSpec,
    RunEnded,
    RunRefused,
    RunRequest,
    RunSpec,
)
from agentd_client.testing import FakeAgent, FakeFleet
from tests.integration.client.forms import blocking_client, blocking_fleet
from tests.support.waiting import wait_until

Make = Callable[..., Any]
SPEC = RunSpec(run_id="r", roles=(RoleSpec(command=Command(entrypoint="x.py")),), controller_lease=30.0)


@pytest.fixture(params=[Fleet, blocking_fleet], ids=["sync", "asyncio"])
def make_fleet(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest.fixture(params=[AgentClient, blocking_client], ids=["sync", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def test_one_node_is_drained_and_given_back(make_client: Make) -> None:
    with FakeAgent() as fake, make_client(fake.target) as client:
        report = client.drain(deadline=60.0, grace=3.0, reason="new disk")
        assert (report.drain.mode, report.drain.reason, report.drain.grace) == (
            DrainMode.WAIT,
            "new disk",
            3.0,
        )
        assert 0 < report.drain.deadline - time.time() <= 60
        assert client.get_node().drain == report.drain
        with pytest.raises(NodeDrained, match="new disk"):
            client.run(RunRequest(request_id="q", spec=SPEC))
        assert client.undrain() == report.drain
        assert client.undrain() is None
        assert client.run(RunRequest(request_id="q", spec=SPEC)).created


def test_a_run_on_a_fleet_with_a_drained_node_is_refused_and_undone(make_fleet: Make) -> None:
    with FakeFleet(3) as fakes, make_fleet(fakes.targets) as fleet:
        with make_fleet(fakes.targets[1:2]) as one:
            assert one.drain().complete
        with pytest.raises(RunRefused, match="is drained"):
            fleet.run(SPEC)
        assert fleet.find("r").status().status.phase is Phase.STOPPED


def test_what_some_nodes_did_and_others_did_not_is_told(make_fleet: Make) -> None:
    with FakeFleet(2) as fakes, make_fleet(fakes.targets, timeout_s=2.0) as fleet:
        fakes[1].stop()
        result = fleet.drain(mode=DrainMode.MOVE)
        assert list(result.answers) == fakes.targets[:1]
        assert list(result.problems) == fakes.targets[1:]
        assert list(fleet.undrain().problems) == fakes.targets[1:]


def test_a_drain_is_followed_over_an_agentd_that_is_away_for_a_while(make_fleet: Make) -> None:
    with FakeFleet(2) as fakes, make_fleet(fakes.targets, timeout_s=2.0) as fleet:
        fleet.drain()
        fakes[1].stop()
        seen = []
        for event in fleet.follow_drain():
            seen.append(event)
            if isinstance(event, NodeProblem):
                fakes[1].start()
        assert [type(event) for event in seen if event.node == fakes.targets[1]] == [
            NodeProblem, NodeBack, DrainProgress
        ]  # fmt: skip
        assert all(event.empty and event.over for event in seen if isinstance(event, DrainProgress))


def test_a_node_that_stays_silent_is_followed_no_more(make_fleet: Make) -> None:
    with FakeFleet(1) as fakes, make_fleet(fakes.targets, timeout_s=1.0, patience_s=0.5) as fleet:
        fleet.drain()
        fakes[0].stop()
        assert [type(event) for event in fleet.follow_drain()] == [NodeProblem]


def test_a_lease_is_renewed_by_any_node_that_answers(make_fleet: Make) -> None:
    with FakeFleet(2) as fakes, make_fleet(fakes.targets, timeout_s=2.0) as fleet:
        run = fleet.run(SPEC)
        first = run.renew_lease()
        assert first.duration == 30.0
        fakes[0].stop()
        assert run.renew_lease().until >= first.until
        fakes.finish("r")
        with pytest.raises(RunEnded):
            run.renew_lease()


def test_what_has_no_lease_cannot_be_kept(make_fleet: Make) -> None:
    free = RunSpec(run_id="free", roles=SPEC.roles)
    with FakeFleet(1) as fakes, make_fleet(fakes.targets) as fleet:
        with pytest.raises(NoControllerLease):
            fleet.run(free).renew_lease()


def test_a_keeper_renews_while_its_block_runs() -> None:
    lease = RunSpec(run_id="r", roles=SPEC.roles, controller_lease=0.06)
    with FakeFleet(1) as fakes, Fleet(fakes.targets) as fleet:
        with fleet.run(lease).keep_lease() as keeper:
            assert keeper.lease is not None
            first = keeper.lease.until
            wait_until(lambda: keeper.lease is not None and keeper.lease.until > first + 0.1)
        assert "agentd-client-lease" not in {thread.name for thread in threading.enumerate()}
