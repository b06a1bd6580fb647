"""Fleets and runs over real channels to fake agentds, the same for the synchronous and the asyncio form."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.api.errors import (
    AgentdEnding,
    AgentError,
    DeadlineExceeded,
    DeviceInUse,
    LogNotFound,
    NotRunning,
    RunConflict,
    RunNotFound,
    Unreachable,
)
from agentd.v1 import agent_service_pb2 as service
from agentd_client import (
    AgentClient,
    Command,
    Fleet,
    LogReceived,
    LogsRequest,
    LogStream,
    NodeBack,
    NodeProblem,
    NodeStarted,
    Phase,
    RoleSpec,
    RunOver,
    RunRefused,
    RunRequest,
    RunSpec,
    StatusChanged,
    StillRunning,
    StopScope,
)
from agentd_client.testing import FakeAgent, FakeFleet
from tests.integration.client.forms import blocking_client, blocking_fleet
from tests.support.waiting import wait_until

Make = Callable[..., Any]
SPEC = RunSpec(run_id="r", roles=(RoleSpec(command=Command(entrypoint="x.py"), local_world_size=2),))


@pytest.fixture(params=[Fleet, blocking_fleet], ids=["sync", "asyncio"])
def make_fleet(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest.fixture(params=[AgentClient, blocking_client], ids=["sync", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest.fixture
def fakes() -> Iterator[FakeFleet]:
    with FakeFleet(3) as fleet:
        yield fleet


@contextlib.contextmanager
def nobodys_port() -> Iterator[int]:
    """A port where nobody listens, and where nobody can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port


def soon(action: Callable[[], object], seconds: float = 0.2) -> threading.Timer:
    """Something that happens while the test waits."""
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_a_run_goes_to_every_node_and_is_told_whole(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        report = run.status()
    assert [start.created for start in run.launched.starts.values()] == [True, True, True]
    assert (report.status.phase, report.complete) == (Phase.RUNNING, True)
    workers = [w for node in report.status.nodes for group in node.groups for w in group.workers]
    assert [w.rank for w in workers] == [0, 1, 2, 3, 4, 5]
    assert all(w.pid for w in workers)


def test_waiting_gives_the_first_failure(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        timer = soon(lambda: fakes.finish("r", rank=3, exit_code=7, message="boom"))
        report = run.wait(timeout_s=30)
        timer.join()
    assert report.status.phase is Phase.FAILED
    failure = report.status.first_failure
    assert (failure.node_id, failure.rank, failure.exit_code, failure.message) == ("fake-1", 3, 7, "boom")


def test_watching_gives_each_snapshot_once_over_a_broken_connection(
    fakes: FakeFleet, make_fleet: Make
) -> None:
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        seen = []
        for status in run.watch():
            seen.append((status.phase, status.restart_count))
            if seen[-1] == (Phase.RUNNING, 0) and len(status.nodes[-1].groups[0].workers) == 2:
                for agent in fakes.agents:
                    agent.break_streams()
                fakes.publish("r", restart_count=1)
            elif seen[-1] == (Phase.RUNNING, 1):
                fakes.finish("r")
    assert seen[-1] == (Phase.SUCCEEDED, 1)
    assert (Phase.RUNNING, 1) in seen


def test_a_controller_that_dies_loses_nothing(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        fleet.run(SPEC)
    # Another process knows one node and the id.
    with make_fleet(fakes.targets[1:2]) as fleet:
        run = fleet.find("r")
        assert len(run.status().status.nodes) == 3
        timer = soon(lambda: fakes.finish("r"))
        assert run.wait(timeout_s=30).status.phase is Phase.SUCCEEDED
        timer.join()
        assert fleet.find("r").status().status.phase is Phase.SUCCEEDED


def test_a_repeated_run_is_the_same_and_another_spec_is_refused(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        first, again = fleet.run(SPEC), fleet.run(SPEC)
        assert first.incarnation == again.incarnation
        assert not any(start.created for start in again.launched.starts.values())
        with pytest.raises(RunConflict, match="max_restarts"):
            fleet.run(RunSpec(run_id="r", roles=SPEC.roles, max_restarts=1))
        assert first.status().status.phase is Phase.RUNNING


def test_a_refusal_ends_what_was_started_and_names_the_node(fakes: FakeFleet, make_fleet: Make) -> None:
    fakes[2].refuse("Run", DeviceInUse(0, "other"))
    with make_fleet(fakes.targets) as fleet:
        with pytest.raises(RunRefused, match="device 0 is in use by run 'other'") as refused:
            fleet.run(SPEC)
        assert list(refused.value.problems) == [fakes[2].target]
        assert fleet.find("r").status().status.phase is Phase.STOPPED


def test_a_missing_node_takes_the_run_when_it_comes_back(fakes: FakeFleet, make_fleet: Make) -> None:
    fakes[1].stop()
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        assert list(run.launched.problems) == [fakes[1].target]
        events: list[Any] = []
        for event in run.follow():
            events.append(event)
            if isinstance(event, NodeProblem) and len(events) == 1:
                fakes[1].start()
            if isinstance(event, NodeStarted):
                fakes.finish("r")
    kinds = [type(event) for event in events]
    assert kinds[0] is NodeProblem
    assert NodeStarted in kinds
    assert kinds[-1] is RunOver
    ids = {request.request_id for agent in fakes.agents for request in agent.requests(service.RunRequest)}
    assert len(ids) == 1


def test_a_node_that_drains_is_missing_too(fakes: FakeFleet, make_fleet: Make) -> None:
    fakes[1].refuse("Run", AgentdEnding("fake-1"))
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        timer = soon(lambda: wait_until(lambda: run_is_up(fakes), 20) and fakes.finish("r"), 0)
        assert run.wait(timeout_s=30).status.phase is Phase.SUCCEEDED
        timer.join()


def run_is_up(fakes: FakeFleet) -> bool:
    return fakes.world.status("fake-0", "r").phase is Phase.RUNNING


def test_output_of_all_nodes_is_read_without_loss_or_repetition(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        fakes.write_log("r", rank=0, data=b"one\n")
        fakes.write_log("r", rank=5, data=b"last\n")
        got: dict[int, bytes] = {}
        for event in run.follow(logs=LogsRequest(run_id="r", follow=True, all_rounds=True)):
            if not isinstance(event, LogReceived):
                continue
            rank = event.chunk.rank
            got[rank] = got.get(rank, b"") + event.chunk.data
            if got == {0: b"one\n", 5: b"last\n"}:
                fakes[0].break_streams()
                fakes.write_log("r", rank=0, data=b"two\n")
            elif got.get(0) == b"one\ntwo\n":
                fakes.write_log("r", rank=1, data=b"at the end\n")
                fakes.finish("r")
    assert got == {0: b"one\ntwo\n", 5: b"last\n", 1: b"at the end\n"}


def test_logs_of_some_ranks_come_from_the_nodes_that_have_them(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        fakes.write_log("r", rank=1, data=b"out\n")
        fakes.write_log("r", rank=1, data=b"err\n", stream=LogStream.STDERR)
        assert [c.data for c in run.logs(ranks=[1], streams=[LogStream.STDERR])] == [b"err\n"]
        with pytest.raises(LogNotFound):
            list(run.logs(ranks=[99]))


def test_stop_join_leave_and_signal(fakes: FakeFleet, make_fleet: Make) -> None:
    with FakeAgent("late", world=fakes.world) as late, make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        joined = run.join([late.target], environment={"A": "b"})
        assert [start.created for start in joined.answers.values()] == [True]
        (request,) = late.requests(service.RunRequest)
        assert (request.join, request.incarnation, dict(request.passed_env)) == (
            True,
            run.incarnation,
            {"A": "b"},
        )
        assert len(run.status().status.nodes) == 4

        got = run.signal(10, [0, 7])
        assert sorted(rank for ranks in got.answers.values() for rank in ranks) == [0, 7]
        with pytest.raises(NotRunning, match="no running worker of rank 99"):
            run.signal(10, [99])

        left = run.leave([fakes.targets[1]], reason="maintenance")
        assert list(left.answers) == [fakes.targets[1]]
        (stop,) = fakes[1].requests(service.StopRequest)
        assert (stop.scope, stop.reason) == (service.STOP_SCOPE_LEAVE, "maintenance")

        assert run.stop(grace=1.5, reason="enough").status.phase is Phase.STOPPED
        stop = fakes[0].requests(service.StopRequest)[-1]
        assert (stop.grace.ToMilliseconds(), stop.scope) == (1500, service.STOP_SCOPE_TERMINATE)
        assert run.wait(timeout_s=30).status.reason == "enough"


def test_what_one_node_cannot_tell_stands_beside_what_others_do(fakes: FakeFleet, make_fleet: Make) -> None:
    with nobodys_port() as port, make_fleet([*fakes.targets, nobody := f"127.0.0.1:{port}"]) as fleet:
        nodes = fleet.get_nodes()
        assert {info.node_id for info in nodes.answers.values()} == {"fake-0", "fake-1", "fake-2"}
        assert list(nodes.problems) == [nobody]
        assert isinstance(nodes.problems[nobody], Unreachable)
        assert not nodes.complete
        with pytest.raises(RunNotFound, match=f"{nobody} did not answer"):
            fleet.find("unknown")


def test_nobody_anywhere_is_unreachable(make_fleet: Make) -> None:
    with nobodys_port() as port, make_fleet([f"127.0.0.1:{port}"]) as fleet:
        with pytest.raises(Unreachable, match="agentd"):
            fleet.find("r")


def test_following_is_given_up_when_every_node_stays_away(make_fleet: Make) -> None:
    with FakeAgent() as fake, make_fleet([fake.target], patience_s=0.5) as fleet:
        run = fleet.run(SPEC)
        timer = soon(fake.stop)
        with pytest.raises(Unreachable):
            run.wait()
        timer.join()


def test_waiting_ends_in_time_and_the_run_goes_on(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        told = "not heard of yet"
        for seconds in (0.3, 3.0, 30.0):  # a busy node may take its time to tell
            if "not heard of yet" in told:
                with pytest.raises(StillRunning) as late:
                    run.wait(timeout_s=seconds)
                told = str(late.value)
        assert "is running and goes on" in told
        assert run.status().status.phase is Phase.RUNNING


def test_a_restarted_agentd_is_watched_on(make_fleet: Make) -> None:
    with FakeAgent() as fake, make_fleet([fake.target]) as fleet:
        run = fleet.run(SPEC)
        kinds = []
        for event in run.follow():
            kinds.append(type(event))
            if kinds == [StatusChanged]:
                fake.stop()
                fake.start()
            elif kinds[-1] is NodeBack:
                fake.world.finish("r")
    assert kinds[-1] is RunOver
    assert NodeProblem in kinds


def test_leaving_a_watch_ends_its_calls_and_not_the_run(fakes: FakeFleet, make_fleet: Make) -> None:
    with make_fleet(fakes.targets) as fleet:
        run = fleet.run(SPEC)
        events = run.follow(logs=LogsRequest(run_id="r", follow=True))
        next(events)
        events.close()
        wait_until(lambda: not any(agent.open_streams for agent in fakes.agents), 20)
        assert run.status().status.phase is Phase.RUNNING


def test_every_call_has_a_deadline(make_client: Make) -> None:
    with FakeAgent() as fake, make_client(fake.target, timeout_s=0.3) as client:
        fake.delay("GetNode", 1.0)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            client.get_node()
        assert time.monotonic() - began < 5


def test_one_node_answers_every_call(make_client: Make) -> None:
    with FakeAgent() as fake, make_client(fake.target) as client:
        start = client.run(RunRequest(request_id="q", spec=SPEC))
        assert start.created
        assert client.status("r").phase is Phase.RUNNING
        assert [run.run_id for run in client.list_runs()] == ["r"]
        status, spec = client.describe("r")
        assert (status.run_id, spec) == ("r", SPEC)
        assert client.signal("r", 10, [1]) == (1,)
        assert client.get_node().node_id == "fake-0"
        assert client.health() == "SERVING"
        fake.world.write_log("r", rank=0, data=b"x\n")
        assert [c.data for c in client.logs(LogsRequest(run_id="r"))] == [b"x\n"]
        timer = soon(lambda: client_stop(fake))
        assert [s.phase for s in client.watch("r")][-1] is Phase.STOPPED
        timer.join()
        assert client.stop("r", scope=StopScope.LEAVE).phase is Phase.STOPPED
        assert client.terminate("r").phase is Phase.STOPPED


def client_stop(fake: FakeAgent) -> None:
    fake.world.finish("r", Phase.STOPPED)


def test_many_runs_come_page_by_page(make_client: Make) -> None:
    with FakeAgent() as fake, make_client(fake.target) as client:
        for number in range(450):
            spec = RunSpec(run_id=f"r{number}", roles=SPEC.roles)
            fake.world.start("fake-0", fake.target, RunRequest(request_id="q", spec=spec))
        assert len({run.run_id for run in client.list_runs()}) == 450
        assert len(fake.requests(service.StatusRequest)) == 3


def test_a_unix_socket_gets_the_callers_whole_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_fleet: Make
) -> None:
    monkeypatch.setenv("A_SECRET", "hidden")
    monkeypatch.setenv("NCCL_TEST", "1")
    with FakeAgent("u", listen=f"unix:{tmp_path}/a.sock") as local, FakeAgent("t") as remote:
        for fake, secret in ((local, "hidden"), (remote, None)):
            with make_fleet([fake.target]) as fleet:
                fleet.run(SPEC)
            (request,) = fake.requests(service.RunRequest)
            assert request.passed_env.get("A_SECRET") == secret
            assert request.passed_env["NCCL_TEST"] == "1"


def test_an_error_of_the_server_comes_as_it_was_raised(make_client: Make) -> None:
    with FakeAgent() as fake, make_client(fake.target) as client:
        fake.refuse("Status", DeviceInUse(3, "other"))
        with pytest.raises(AgentError) as raised:
            client.status("r")
    assert type(raised.value) is DeviceInUse
    assert raised.value.facts == {"device": "3", "run_id": "other"}


def test_a_closed_client_says_so(fakes: FakeFleet, make_fleet: Make) -> None:
    fleet = make_fleet(fakes.targets)
    with fleet:
        run = fleet.run(SPEC)
    if isinstance(fleet, Fleet):
        with pytest.raises(RuntimeError, match="closed"):
            run.status()
