"""Every message survives the wire, and what cannot be one is refused by name."""

from __future__ import annotations

import pytest

from agentd.api.errors import InvalidSpec
from agentd.api.types import Failure, Phase, RunStatus
from agentd.hub import codec
from agentd.hub.hub import Described
from agentd.hub.messages import (
    AgedFailure,
    Assignment,
    HubLeaving,
    HubMessage,
    MemberCondition,
    MemberDone,
    MemberFailed,
    MemberLeaving,
    MemberReady,
    MemberState,
    MemberWaiting,
    NodeMessage,
    RoundGone,
    RunFinished,
    RunView,
    SessionHeartbeat,
    SessionHeartbeatAnswer,
    SessionHello,
    SessionWelcome,
    StopRound,
)
from agentd.v1 import rendezvous_service_pb2 as pb
from tests.unit.hub.rig import make_spec

FAILURE = Failure(node_id="a", role="x", round=2, rank=3, pid=4, exit_code=5, time=1.5, stderr_tail="oh")

NODE_MESSAGES: list[NodeMessage] = [
    MemberReady(role="x", local_world_size=8, master_port=41_000, round=7),
    RoundGone(role="x", round=3, master_port=41_001),
    RoundGone(role="x", round=3, unkillable="pid 9 in D state"),
    MemberFailed(role="x", round=3, failures=(AgedFailure(failure=FAILURE, age=0.25),)),
    MemberFailed(role="x", round=3, reason="the host was lost"),
    MemberDone(role="x", round=3),
    MemberLeaving(role="x", reason="asked to"),
    MemberLeaving(role="x", reason="no disk", failed=True),
    SessionHeartbeat(sequence=12),
]

HUB_MESSAGES: list[HubMessage] = [
    SessionWelcome(hub_node_id="hub", heartbeat=1.0, lease=5.5, spec=make_spec(["a", "b"])),
    Assignment(
        role="x",
        round=1,
        group_rank=2,
        group_world_size=3,
        rank_base=4,
        world_size=5,
        role_rank_base=6,
        role_world_size=7,
        master_addr="a.example",
        master_port=8,
        restart_count=9,
        max_restarts=10,
    ),
    StopRound(round=3, reason="b left"),
    MemberWaiting(role="x", reason="full"),
    RunFinished(phase=Phase.FAILED, first_failure=FAILURE, reason="it failed", stop_grace=0.0),
    RunFinished(phase=Phase.SUCCEEDED),
    SessionHeartbeatAnswer(sequence=12),
    RunView(status=RunStatus(run_id="run", incarnation=7, phase=Phase.RUNNING, missing=("c",))),
    HubLeaving(reason="upgrade"),
]


def over_the_wire(message: pb.JoinRequest) -> pb.JoinRequest:
    return pb.JoinRequest.FromString(message.SerializeToString())


def test_hello_survives_the_wire() -> None:
    hello = SessionHello(
        run_id="run",
        incarnation=7,
        node_id="a",
        agent_uid="uid",
        session_epoch=3,
        address="a.example:7460",
        node_name="host-a",
        members=(MemberState(role="x", local_world_size=2, condition=MemberCondition.DONE, round=4),),
        reattach_window=60.0,
        version="0.1",
        restart_count=3,
        membership_changes=5,
        failure_counted=True,
    )
    assert codec.hello_from_message(over_the_wire(codec.hello_to_message(hello))) == hello


@pytest.mark.parametrize("message", NODE_MESSAGES, ids=lambda message: type(message).__name__)
def test_what_a_node_says_survives_the_wire(message: NodeMessage) -> None:
    assert codec.request_from_message(over_the_wire(codec.request_to_message(message))) == message


@pytest.mark.parametrize("message", HUB_MESSAGES, ids=lambda message: type(message).__name__)
def test_what_the_hub_says_survives_the_wire(message: HubMessage) -> None:
    wire = pb.JoinResponse.FromString(codec.response_to_message(message).SerializeToString())
    assert codec.response_from_message(wire) == message


def test_every_kind_of_message_is_tried() -> None:
    requests = {codec.request_to_message(message).WhichOneof("message") for message in NODE_MESSAGES}
    responses = {codec.response_to_message(message).WhichOneof("message") for message in HUB_MESSAGES}
    kinds = {field.name for field in pb.JoinRequest.DESCRIPTOR.oneofs[0].fields}
    assert requests | {"hello"} == kinds
    assert responses == {field.name for field in pb.JoinResponse.DESCRIPTOR.oneofs[0].fields}


def test_description_survives_the_wire() -> None:
    described = Described(RunStatus(run_id="run", incarnation=7), make_spec(["a"]), 12.5)
    assert codec.described_from_message(codec.described_to_message(described)) == described


def test_message_of_a_newer_peer_is_skipped() -> None:
    assert codec.request_from_message(pb.JoinRequest()) is None
    assert codec.response_from_message(pb.JoinResponse()) is None


def hello_message(**fields: object) -> pb.JoinRequest:
    facts: dict[str, object] = {"run_id": "run", "node_id": "a", "agent_uid": "uid"} | fields
    return pb.JoinRequest(hello=pb.SessionHello(**facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.JoinRequest(heartbeat=pb.SessionHeartbeat(sequence=1)), "message"),
        (hello_message(run_id=""), "hello.run_id"),
        (hello_message(node_id=""), "hello.node_id"),
        (hello_message(agent_uid=""), "hello.agent_uid"),
        (hello_message(address="x" * 5000), "hello.address"),
        (
            hello_message(members=[pb.MemberState(role="x", local_world_size=1)]),
            "hello.members.condition",
        ),
        (
            hello_message(members=[pb.MemberState(role="x", condition=pb.MEMBER_CONDITION_RUNNING)]),
            "hello.members.local_world_size",
        ),
    ],
)
def test_hello_that_cannot_be_one_is_refused_by_its_field(message: pb.JoinRequest, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        codec.hello_from_message(message)
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (hello_message(), "message"),
        (pb.JoinRequest(ready=pb.MemberReady(role="x")), "ready.local_world_size"),
        (
            pb.JoinRequest(ready=pb.MemberReady(role="x", local_world_size=10_000)),
            "ready.local_world_size",
        ),
        (
            pb.JoinRequest(ready=pb.MemberReady(role="x", local_world_size=1, master_port=70_000)),
            "ready.master_port",
        ),
        (pb.JoinRequest(gone=pb.RoundGone(role="x", unkillable="y" * 5000)), "gone.unkillable"),
    ],
)
def test_word_that_cannot_be_one_is_refused_by_its_field(message: pb.JoinRequest, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        codec.request_from_message(message)
    assert caught.value.facts["field"] == field


def test_one_view_for_all_nodes_is_translated_once() -> None:
    view = RunView(status=RunStatus(run_id="run"))
    assert codec.response_to_message(view) is codec.response_to_message(view)
    other = RunView(status=RunStatus(run_id="run"))
    assert codec.response_to_message(other) is not codec.response_to_message(view)
