"""Following a run: whose word counts, what happens when streams break, when it is over."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from agentd.api import convert
from agentd.api.errors import AgentError, DeviceInUse, RunNotFound, Unreachable
from agentd.api.types import (
    Command,
    GroupStatus,
    LogChunk,
    LogsRequest,
    LogStream,
    NodeStatus,
    Phase,
    RoleSpec,
    RunSpec,
    RunStatus,
    WorkerState,
    WorkerStatus,
)
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import rendezvous_service_pb2 as rendezvous
from agentd_client import plan as p
from agentd_client.failures import RunRefused, StillRunning
from agentd_client.follow import FollowOptions, follow
from agentd_client.launch import Launch, Launched
from agentd_client.locate import Place
from agentd_client.nodes import node_of
from agentd_client.report import (
    LogReceived,
    NodeBack,
    NodeProblem,
    NodeStarted,
    RunOver,
    RunReport,
    Start,
    StatusChanged,
)
from tests.unit.client.scripted import Scripted

A, B = node_of("a"), node_of("b")
HUB = "a:7460"
WATCH_A, WATCH_B = "watch:a:7460", "watch:b:7460"
LOGS_A, LOGS_B = "logs:a:7460", "logs:b:7460"


def node(name: str, phase: Phase = Phase.RUNNING, *, pid: int = 0) -> NodeStatus:
    worker = WorkerStatus(
        role="default", rank=0, local_rank=0, role_rank=0, pid=pid, state=WorkerState.HEALTHY
    )
    group = GroupStatus(
        role="default",
        phase=phase,
        worker_state=WorkerState.HEALTHY,
        round=1,
        workers=(worker,) if pid else (),
    )
    return NodeStatus(node_id=name, name=name, address=f"{name}:7460", phase=phase, groups=(group,))


def run(phase: Phase = Phase.RUNNING, *, hub: bool = True, nodes: tuple[NodeStatus, ...] = ()) -> RunStatus:
    return RunStatus(
        run_id="r", incarnation=7, phase=phase, round=1, from_hub=hub, hub_address=HUB, nodes=nodes
    )


def told(key: str, status: RunStatus) -> p.Arrived:
    return p.Arrived(key, service.WatchResponse(status=convert.run_status_to_message(status)))


def answers(**by_method: Message | AgentError) -> Any:
    """Unary answers by RPC; a call nobody expects finds no run."""
    return lambda call: by_method.get(call.method.name, RunNotFound("r", call.target))


def status_answer(status: RunStatus) -> service.StatusResponse:
    return service.StatusResponse(runs=[convert.run_status_to_message(status)])


def follower(
    events: list[tuple[float, p.StreamEvent]],
    *nodes: Any,
    unary: Any = None,
    launched: Launched | None = None,
    **options: Any,
) -> tuple[RunReport, Scripted]:
    driver = Scripted(unary or answers(), events)
    place = Place(run_id="r", incarnation=7, nodes=nodes or (A,))
    return driver.run(follow(place, FollowOptions(launched=launched, **options))), driver


def phases(driver: Scripted) -> list[Phase]:
    return [event.status.phase for event in driver.emitted if isinstance(event, StatusChanged)]


def test_the_hubs_end_is_the_end() -> None:
    report, driver = follower([(0.1, told(WATCH_A, run())), (0.1, told(WATCH_A, run(Phase.SUCCEEDED)))])
    assert report.status.phase is Phase.SUCCEEDED
    assert phases(driver) == [Phase.RUNNING, Phase.SUCCEEDED]
    assert isinstance(driver.emitted[-1], RunOver)
    assert not driver.open_keys


def test_the_picture_has_the_hubs_state_and_each_nodes_workers() -> None:
    hub_view = run(nodes=(node("a", pid=1), node("b")))
    own_view = run(hub=False, nodes=(node("b", pid=2),))
    _, driver = follower(
        [
            (0.1, told(WATCH_A, hub_view)),
            (0.1, told(WATCH_B, own_view)),
            (0.1, told(WATCH_A, run(Phase.FAILED))),
        ],
        A,
        B,
    )
    picture = driver.emitted[1].status
    pids = [w.pid for n in picture.nodes for g in n.groups for w in g.workers]
    assert pids == [1, 2]
    assert picture.from_hub


def test_a_nodes_own_end_is_not_the_runs() -> None:
    report, driver = follower(
        [
            (0.1, told(WATCH_B, run(Phase.STOPPED, hub=False))),
            (0.1, told(WATCH_A, run())),
            (0.1, told(WATCH_A, run(Phase.SUCCEEDED))),
        ],
        A,
        B,
        unary=answers(Describe=rendezvous.DescribeResponse(status=convert.run_status_to_message(run()))),
    )
    assert report.status.phase is Phase.SUCCEEDED
    assert ("Describe a:7460",) in driver.batches


def test_without_its_hub_the_end_that_members_tell_counts_after_a_while() -> None:
    report, driver = follower(
        [
            (0.1, p.Ended(WATCH_A, Unreachable("a:7460"))),
            (0.1, told(WATCH_B, run(Phase.FAILED, hub=False))),
        ],
        A,
        B,
        unary=lambda call: Unreachable(call.target),
    )
    assert report.status.phase is Phase.FAILED
    assert 5.0 < driver.now - 1000 < 10


def test_a_broken_stream_is_opened_again_and_what_was_seen_is_not_told_twice() -> None:
    _, driver = follower(
        [
            (0.1, told(WATCH_A, run())),
            (0.1, p.Ended(WATCH_A, Unreachable("a:7460"))),
            (0.5, told(WATCH_A, run())),
            (0.1, told(WATCH_A, run(Phase.SUCCEEDED))),
        ]
    )
    assert phases(driver) == [Phase.RUNNING, Phase.SUCCEEDED]
    assert len(driver.opened) == 2
    kinds = [type(event) for event in driver.emitted]
    assert kinds == [StatusChanged, NodeProblem, NodeBack, StatusChanged, RunOver]


def test_a_silent_stream_is_taken_as_broken() -> None:
    _, driver = follower([(0.1, told(WATCH_A, run())), (20.0, told(WATCH_A, run(Phase.SUCCEEDED)))])
    problem = next(event for event in driver.emitted if isinstance(event, NodeProblem))
    assert "said nothing" in str(problem.error)


def test_following_is_given_up_when_nobody_answers_for_long() -> None:
    driver = Scripted(answers(), [(0.5, p.Ended(WATCH_A, Unreachable("a:7460"))) for _ in range(200)])
    place = Place(run_id="r", incarnation=7, nodes=(A,))
    with pytest.raises(Unreachable):
        driver.run(follow(place, FollowOptions(patience_s=30)))
    assert 30 < driver.now - 1000 < 40


def test_a_run_that_no_node_knows_is_not_waited_for() -> None:
    with pytest.raises(RunNotFound):
        follower([(0.1, p.Ended(WATCH_A, RunNotFound("r", "a")))])


def test_waiting_ends_in_time_however_much_happens() -> None:
    busy = [(0.1, told(WATCH_A, run(nodes=(node("a", pid=i),)))) for i in range(1, 200)]
    driver = Scripted(answers(), busy)
    with pytest.raises(StillRunning, match="running"):
        driver.run(follow(Place(run_id="r", incarnation=7, nodes=(A,)), FollowOptions(wait_s=3)))
    assert driver.now - 1000 == pytest.approx(3, abs=0.2)


def launched_without_b() -> Launched:
    spec = RunSpec(run_id="r", roles=(RoleSpec(command=Command(entrypoint="x")),), nodes=("a", "b"))
    return Launched(
        launch=Launch(spec=spec, nodes=(A, B), hub=A, request_id="q"),
        status=run(Phase.RENDEZVOUS),
        starts={"a": Start(status=run(Phase.RENDEZVOUS), created=True)},
        problems={"b": Unreachable("b:7460")},
    )


def test_a_missing_node_is_asked_again_by_the_same_request_until_it_takes_the_run() -> None:
    answer = service.RunResponse(status=convert.run_status_to_message(run()), created=True)
    report, driver = follower(
        [
            (0.1, told(WATCH_A, run(Phase.RENDEZVOUS))),
            (0.5, p.Ended("start:b", Unreachable("b:7460"))),
            (1.5, p.Arrived("start:b", answer)),
            (0.1, p.Ended("start:b")),
            (0.1, told(WATCH_A, run(Phase.SUCCEEDED))),
        ],
        A,
        B,
        launched=launched_without_b(),
    )
    asked: list[Any] = [call.request for call in driver.opened if call.method.name == "Run"]
    assert [(request.request_id, request.incarnation) for request in asked] == [("q", 7), ("q", 7)]
    assert [event.node for event in driver.emitted if isinstance(event, NodeStarted)] == ["b"]
    assert WATCH_B in {f"watch:{call.target}" for call in driver.opened if call.method.name == "Watch"}
    assert report.status.phase is Phase.SUCCEEDED


def test_a_node_whose_answer_the_end_has_overtaken_is_told_and_its_output_read() -> None:
    output = LogChunk(
        role="default", round=1, rank=1, local_rank=0, stream=LogStream.STDOUT, offset=0, data=b"b's\n"
    )
    _, driver = follower(
        [
            (0.1, told(WATCH_A, run(Phase.RENDEZVOUS, nodes=(node("a"),)))),
            (0.1, finished()),
            (0.7, told(WATCH_A, run(Phase.SUCCEEDED, nodes=(node("a"), node("b", Phase.SUCCEEDED))))),
            (0.1, p.Arrived(LOGS_B, service.LogsResponse(chunk=convert.log_chunk_to_message(output)))),
            (0.1, finished(LOGS_B)),
        ],
        A,
        B,
        launched=launched_without_b(),
        logs=LogsRequest(run_id="r", follow=True),
    )
    assert [call.target for call in driver.opened if call.method.name == "Run"] == ["b:7460"]
    assert [event.node for event in driver.emitted if isinstance(event, NodeStarted)] == ["b"]
    assert [event.chunk.data for event in driver.emitted if isinstance(event, LogReceived)] == [b"b's\n"]
    assert isinstance(driver.emitted[-1], RunOver)


def test_a_node_that_never_came_has_not_taken_the_run() -> None:
    _, driver = follower(
        [
            (0.1, told(WATCH_A, run(Phase.RENDEZVOUS, nodes=(node("a"),)))),
            (0.1, told(WATCH_A, run(Phase.FAILED, nodes=(node("a"), node("b", Phase.LOST))))),
        ],
        A,
        B,
        launched=launched_without_b(),
    )
    assert not [event for event in driver.emitted if isinstance(event, NodeStarted)]


def test_a_late_refusal_ends_a_run_that_waits_for_that_node() -> None:
    events: list[tuple[float, p.StreamEvent]] = [
        (0.1, told(WATCH_A, RunStatus(run_id="r", incarnation=7, phase=Phase.RENDEZVOUS, from_hub=True))),
        (0.5, p.Ended("start:b", DeviceInUse(0, "other"))),
    ]
    driver = Scripted(lambda call: service.StopResponse(), events)
    with pytest.raises(RunRefused):
        driver.run(
            follow(
                Place(run_id="r", incarnation=7, nodes=(A, B)), FollowOptions(launched=launched_without_b())
            )
        )
    assert [call.target for call in driver.calls if call.method.name == "Stop"] == ["a:7460"]


def chunk(offset: int, data: bytes) -> p.Arrived:
    piece = LogChunk(
        role="default", round=1, rank=0, local_rank=0, stream=LogStream.STDOUT, offset=offset, data=data
    )
    return p.Arrived(LOGS_A, service.LogsResponse(chunk=convert.log_chunk_to_message(piece)))


def finished(key: str = LOGS_A) -> p.Arrived:
    return p.Arrived(
        key, service.LogsResponse(end=service.StreamEnd(cause=service.STREAM_END_CAUSE_FINISHED))
    )


def test_output_goes_on_where_its_stream_broke_and_is_read_to_its_end() -> None:
    _, driver = follower(
        [
            (0.1, told(WATCH_A, run())),
            (0.1, chunk(0, b"one\n")),
            (0.1, p.Ended(LOGS_A, Unreachable("a:7460"))),
            (0.5, chunk(4, b"two\n")),
            (0.1, told(WATCH_A, run(Phase.SUCCEEDED))),
            (0.1, chunk(8, b"three\n")),
            (0.1, finished()),
        ],
        logs=LogsRequest(run_id="r", follow=True),
    )
    data = b"".join(event.chunk.data for event in driver.emitted if isinstance(event, LogReceived))
    assert data == b"one\ntwo\nthree\n"
    resumed: Any = [call.request for call in driver.opened if call.method.name == "Logs"][1]
    assert [(at.local_rank, at.offset) for at in resumed.resume] == [(0, 4)]
    assert isinstance(driver.emitted[-1], RunOver)


def test_a_node_that_says_no_more_does_not_hold_up_the_end() -> None:
    _, driver = follower(
        [(0.1, told(WATCH_A, run())), (0.1, told(WATCH_A, run(Phase.SUCCEEDED)))],
        logs=LogsRequest(run_id="r", follow=True),
    )
    assert driver.now - 1000 < 10
    assert not driver.open_keys


def test_a_node_that_is_gone_does_not_hold_up_the_end_by_being_tried_again() -> None:
    tries = [(0.7, p.Ended(LOGS_A, Unreachable("a:7460"))) for _ in range(20)]
    _, driver = follower(
        [(0.1, told(WATCH_A, run())), (0.1, told(WATCH_A, run(Phase.SUCCEEDED))), *tries],
        logs=LogsRequest(run_id="r", follow=True),
    )
    assert driver.now - 1000 < 4


def test_a_node_that_joins_later_is_followed_too_unless_it_is_one_by_another_address() -> None:
    def unary(call: p.Call[Any]) -> Message | AgentError:
        if call.method.name == "GetNode":
            return service.GetNodeResponse(node_id="a")
        return RunNotFound("r", call.target)

    alias = NodeStatus(node_id="a", address="10.1.1.1:7460")
    newcomer = NodeStatus(node_id="d", address="10.1.1.4:7460")
    _, driver = follower(
        [
            (0.1, told(WATCH_A, run(nodes=(alias, newcomer)))),
            (0.1, told(WATCH_A, run(Phase.SUCCEEDED))),
        ],
        unary=unary,
    )
    assert [call.target for call in driver.opened] == ["a:7460", "10.1.1.4:7460"]
    assert isinstance(driver.emitted[0], StatusChanged)


def test_the_last_report_asks_each_node_once_and_names_who_did_not_tell() -> None:
    def unary(call: p.Call[Any]) -> Message | AgentError:
        if call.target == "b:7460":
            return Unreachable("b:7460")
        if call.method.name == "Describe":
            return rendezvous.DescribeResponse(status=convert.run_status_to_message(run(Phase.FAILED)))
        return status_answer(run(Phase.FAILED))

    report, driver = follower([(0.1, told(WATCH_A, run(Phase.FAILED)))], A, B, unary=unary)
    assert list(report.problems) == ["b"]
    assert driver.batches.count(("Status a:7460", "Status b:7460")) == 1
