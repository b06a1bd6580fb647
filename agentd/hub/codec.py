"""Rendezvous messages to the wire and back; the only place that knows both.

Reading raises `InvalidSpec` where a message cannot be understood. A message of a kind that only a newer peer
knows reads as None and is to be skipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from agentd.api import convert
from agentd.api.errors import InvalidSpec
from agentd.core.specs import MAX_WORKERS_PER_NODE
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

TEXT_LIMIT = 4096
"""Characters of a name or a sentence that a node sends."""

_CONDITIONS: Mapping[MemberCondition, pb.MemberCondition.ValueType] = {
    condition: pb.MemberCondition.Value(f"MEMBER_CONDITION_{condition.name}") for condition in MemberCondition
}
_CONDITION_OF = {value: condition for condition, value in _CONDITIONS.items()}
_PLAIN_ASSIGNMENT = (
    "role",
    "round",
    "group_rank",
    "group_world_size",
    "rank_base",
    "world_size",
    "role_rank_base",
    "role_world_size",
    "master_addr",
    "master_port",
    "restart_count",
    "max_restarts",
)


# --- what nodes say -----------------------------------------------------------------------------------------


def hello_to_message(hello: SessionHello) -> pb.JoinRequest:
    """The first message of a stream."""
    return pb.JoinRequest(
        hello=pb.SessionHello(
            run_id=hello.run_id,
            incarnation=hello.incarnation,
            node_id=hello.node_id,
            agent_uid=hello.agent_uid,
            session_epoch=hello.session_epoch,
            address=hello.address,
            node_name=hello.node_name,
            members=[
                pb.MemberState(
                    role=member.role,
                    local_world_size=member.local_world_size,
                    round=member.round,
                    condition=_CONDITIONS[member.condition],
                )
                for member in hello.members
            ],
            reattach_window=convert.duration_to_message(hello.reattach_window),
            version=hello.version,
            restart_count=hello.restart_count,
            membership_changes=hello.membership_changes,
            failure_counted=hello.failure_counted,
        )
    )


def hello_from_message(message: pb.JoinRequest) -> SessionHello:
    """Read a stream's first message."""
    if message.WhichOneof("message") != "hello":
        raise InvalidSpec("message", "the first message of a session is its hello")
    hello = message.hello
    for field in ("run_id", "node_id", "agent_uid"):
        if not getattr(hello, field):
            raise InvalidSpec(f"hello.{field}", "it is empty")
    for field in ("run_id", "node_id", "agent_uid", "address", "node_name", "version"):
        _short(f"hello.{field}", getattr(hello, field))
    return SessionHello(
        run_id=hello.run_id,
        incarnation=hello.incarnation,
        node_id=hello.node_id,
        agent_uid=hello.agent_uid,
        session_epoch=hello.session_epoch,
        address=hello.address,
        node_name=hello.node_name,
        members=tuple(_member_from_message(member) for member in hello.members),
        reattach_window=convert.duration_from_message(hello.reattach_window, "hello.reattach_window"),
        version=hello.version,
        restart_count=hello.restart_count,
        membership_changes=hello.membership_changes,
        failure_counted=hello.failure_counted,
    )


def request_to_message(message: NodeMessage) -> pb.JoinRequest:
    """What a node says after its hello."""
    match message:
        case MemberReady(role=role, local_world_size=size, master_port=port, round=round_):
            ready = pb.MemberReady(role=role, local_world_size=size, master_port=port, round=round_)
            return pb.JoinRequest(ready=ready)
        case RoundGone(role=role, round=round_, master_port=port, unkillable=unkillable):
            gone = pb.RoundGone(role=role, round=round_, master_port=port, unkillable=unkillable)
            return pb.JoinRequest(gone=gone)
        case MemberFailed(role=role, round=round_, failures=failures, reason=reason):
            aged = [_aged_to_message(failure) for failure in failures]
            failed = pb.MemberFailed(role=role, round=round_, failures=aged, reason=reason)
            return pb.JoinRequest(failed=failed)
        case MemberDone(role=role, round=round_):
            return pb.JoinRequest(done=pb.MemberDone(role=role, round=round_))
        case MemberLeaving(role=role, reason=reason, failed=given_up):
            return pb.JoinRequest(leaving=pb.MemberLeaving(role=role, reason=reason, failed=given_up))
        case SessionHeartbeat(sequence=sequence):
            return pb.JoinRequest(heartbeat=pb.SessionHeartbeat(sequence=sequence))


def request_from_message(message: pb.JoinRequest) -> NodeMessage | None:
    """Read what a node says after its hello."""
    match message.WhichOneof("message"):
        case "heartbeat":
            return SessionHeartbeat(sequence=message.heartbeat.sequence)
        case "ready":
            ready = message.ready
            return MemberReady(
                role=ready.role,
                local_world_size=_size("ready.local_world_size", ready.local_world_size),
                master_port=_port("ready.master_port", ready.master_port),
                round=ready.round,
            )
        case "gone":
            gone = message.gone
            return RoundGone(
                role=gone.role,
                round=gone.round,
                master_port=_port("gone.master_port", gone.master_port),
                unkillable=_short("gone.unkillable", gone.unkillable),
            )
        case "failed":
            failed = message.failed
            return MemberFailed(
                role=failed.role,
                round=failed.round,
                failures=tuple(_aged_from_message(aged) for aged in failed.failures),
                reason=_short("failed.reason", failed.reason),
            )
        case "done":
            return MemberDone(role=message.done.role, round=message.done.round)
        case "leaving":
            leaving = message.leaving
            reason = _short("leaving.reason", leaving.reason)
            return MemberLeaving(role=leaving.role, reason=reason, failed=leaving.failed)
        case "hello":
            raise InvalidSpec("message", "a session has one hello; open another stream for another")
        case _:
            return None


# --- what the hub says --------------------------------------------------------------------------------------


def response_to_message(message: HubMessage) -> pb.JoinResponse:
    """What the hub says. What it says to every node of a run is translated once."""
    if not isinstance(message, SessionWelcome | StopRound | RunFinished | RunView):
        return _translated(message)
    for known, translated in _shared:
        if known is message:
            return translated
    translated = _translated(message)
    _shared.append((message, translated))
    return translated


_shared: deque[tuple[HubMessage, pb.JoinResponse]] = deque(maxlen=8)


def _translated(message: HubMessage) -> pb.JoinResponse:
    match message:
        case SessionWelcome(hub_node_id=node_id, heartbeat=heartbeat, lease=lease, spec=spec):
            welcome = pb.SessionWelcome(
                hub_node_id=node_id,
                heartbeat=convert.duration_to_message(heartbeat),
                lease=convert.duration_to_message(lease),
                spec=convert.run_spec_to_message(spec),
            )
            return pb.JoinResponse(welcome=welcome)
        case Assignment():
            fields = {name: getattr(message, name) for name in _PLAIN_ASSIGNMENT}
            return pb.JoinResponse(assignment=pb.Assignment(**fields))
        case StopRound(round=round_, reason=reason):
            return pb.JoinResponse(stop_round=pb.StopRound(round=round_, reason=reason))
        case MemberWaiting(role=role, reason=reason):
            return pb.JoinResponse(waiting=pb.MemberWaiting(role=role, reason=reason))
        case RunFinished():
            return pb.JoinResponse(finished=_finished_to_message(message))
        case SessionHeartbeatAnswer(sequence=sequence):
            return pb.JoinResponse(heartbeat=pb.SessionHeartbeatAnswer(sequence=sequence))
        case RunView():
            return pb.JoinResponse(view=pb.RunView(status=convert.run_status_to_message(message.status)))
        case HubLeaving(reason=reason):
            return pb.JoinResponse(hub_leaving=pb.HubLeaving(reason=reason))


def response_from_message(message: pb.JoinResponse) -> HubMessage | None:
    """Read what the hub says."""
    match message.WhichOneof("message"):
        case "heartbeat":
            return SessionHeartbeatAnswer(sequence=message.heartbeat.sequence)
        case "assignment":
            fields = {name: getattr(message.assignment, name) for name in _PLAIN_ASSIGNMENT}
            return Assignment(**fields)
        case "stop_round":
            return StopRound(round=message.stop_round.round, reason=message.stop_round.reason)
        case "waiting":
            return MemberWaiting(role=message.waiting.role, reason=message.waiting.reason)
        case "finished":
            return _finished_from_message(message.finished)
        case "view":
            return RunView(status=convert.run_status_from_message(message.view.status))
        case "hub_leaving":
            return HubLeaving(reason=message.hub_leaving.reason)
        case "welcome":
            welcome = message.welcome
            return SessionWelcome(
                hub_node_id=welcome.hub_node_id,
                heartbeat=convert.duration_from_message(welcome.heartbeat, "welcome.heartbeat"),
                lease=convert.duration_from_message(welcome.lease, "welcome.lease"),
                spec=convert.run_spec_from_message(welcome.spec),
            )
        case _:
            return None


def described_to_message(described: Described) -> pb.DescribeResponse:
    """The answer of Describe."""
    return pb.DescribeResponse(
        status=convert.run_status_to_message(described.status),
        spec=convert.run_spec_to_message(described.spec),
        join_deadline=convert.timestamp_to_message(described.join_deadline),
    )


def described_from_message(message: pb.DescribeResponse) -> Described:
    """Read the answer of Describe."""
    return Described(
        convert.run_status_from_message(message.status),
        convert.run_spec_from_message(message.spec),
        convert.timestamp_from_message(message.join_deadline),
    )


# --- parts --------------------------------------------------------------------------------------------------


def _member_from_message(member: pb.MemberState) -> MemberState:
    condition = _CONDITION_OF.get(member.condition)
    if condition is None:
        raise InvalidSpec("hello.members.condition", f"{member.condition} is no condition of a member")
    return MemberState(
        role=member.role,
        local_world_size=_size("hello.members.local_world_size", member.local_world_size),
        condition=condition,
        round=member.round,
    )


def _aged_to_message(aged: AgedFailure) -> pb.AgedFailure:
    return pb.AgedFailure(
        failure=convert.failure_to_message(aged.failure),
        age=convert.duration_to_message(max(aged.age, 0.0)),
    )


def _aged_from_message(aged: pb.AgedFailure) -> AgedFailure:
    return AgedFailure(
        failure=convert.failure_from_message(aged.failure),
        age=convert.duration_from_message(aged.age, "failed.failures.age"),
    )


def _finished_to_message(message: RunFinished) -> pb.RunFinished:
    return pb.RunFinished(
        phase=convert.PHASES[message.phase],
        first_failure=convert.failure_to_message(message.first_failure) if message.first_failure else None,
        reason=message.reason,
        stop_grace=None if message.stop_grace is None else convert.duration_to_message(message.stop_grace),
    )


def _finished_from_message(message: pb.RunFinished) -> RunFinished:
    grace = None
    if message.HasField("stop_grace"):
        grace = convert.duration_from_message(message.stop_grace, "finished.stop_grace")
    failure = (
        convert.failure_from_message(message.first_failure) if message.HasField("first_failure") else None
    )
    return RunFinished(
        phase=convert.phase_from_message(message.phase),
        first_failure=failure,
        reason=message.reason,
        stop_grace=grace,
    )


def _size(field: str, value: int) -> int:
    if not 1 <= value <= MAX_WORKERS_PER_NODE:
        raise InvalidSpec(field, f"{value} is not a number of workers from 1 to {MAX_WORKERS_PER_NODE}")
    return value


def _port(field: str, value: int) -> int:
    if value > 65_535:
        raise InvalidSpec(field, f"{value} is no port")
    return value


def _short(field: str, text: str) -> str:
    if len(text) > TEXT_LIMIT:
        raise InvalidSpec(field, f"it has {len(text)} characters, more than {TEXT_LIMIT}")
    return text
