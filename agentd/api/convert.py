"""Types to messages and back; the only place that knows both.

`<type>_from_message` raises `InvalidSpec` naming the field where a message cannot be read. What a newer
peer added is dropped; what an older one lacks has its default.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agentd.api import types
from agentd.api.errors import InvalidSpec
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import run_pb2 as run

E = TypeVar("E", bound=enum.Enum)

_NANOS = 1_000_000_000
_LONGEST = 315_576_000_000
"""Seconds a protobuf Duration can hold."""
_LAST_SECOND = 253_402_300_799
"""That a protobuf Timestamp can hold."""

PHASES: Mapping[types.Phase, run.Phase.ValueType] = {
    phase: run.Phase.Value(f"PHASE_{phase.name}") for phase in types.Phase
}
WORKER_STATES: Mapping[types.WorkerState, run.WorkerState.ValueType] = {
    state: run.WorkerState.Value(f"WORKER_STATE_{state.name}") for state in types.WorkerState
}
_KINDS: Mapping[types.EntrypointKind, run.EntrypointKind.ValueType] = {
    kind: run.EntrypointKind.Value(f"ENTRYPOINT_KIND_{kind.name}") for kind in types.EntrypointKind
}
_RULES: Mapping[types.LocalWorldSizeRule, run.LocalWorldSizeRule.ValueType] = {
    rule: run.LocalWorldSizeRule.Value(f"LOCAL_WORLD_SIZE_RULE_{rule.name}")
    for rule in types.LocalWorldSizeRule
}
_ISOLATIONS: Mapping[types.IsolationPolicy, run.IsolationPolicy.ValueType] = {
    policy: run.IsolationPolicy.Value(f"ISOLATION_POLICY_{policy.name}") for policy in types.IsolationPolicy
}
_DRAIN_MODES: Mapping[types.DrainMode, service.DrainMode.ValueType] = {
    mode: service.DrainMode.Value(f"DRAIN_MODE_{mode.name}") for mode in types.DrainMode
}
_SCOPES: Mapping[types.StopScope, service.StopScope.ValueType] = {
    scope: service.StopScope.Value(f"STOP_SCOPE_{scope.name}") for scope in types.StopScope
}
_STREAMS: Mapping[types.LogStream, service.LogStream.ValueType] = {
    stream: service.LogStream.Value(f"LOG_STREAM_{stream.name}") for stream in types.LogStream
}
_END_CAUSES: Mapping[types.StreamEndCause, service.StreamEndCause.ValueType] = {
    cause: service.StreamEndCause.Value(f"STREAM_END_CAUSE_{cause.name}") for cause in types.StreamEndCause
}


def duration_to_message(seconds: float, field: str = "duration") -> Duration:
    """Seconds as a Duration, to the nanosecond. Raises `InvalidSpec` for what is none."""
    if not 0 <= seconds <= _LONGEST:
        raise InvalidSpec(field, f"{seconds:g} is not a number of seconds from 0 to ten thousand years")
    nanos = round(seconds * _NANOS)
    return Duration(seconds=nanos // _NANOS, nanos=nanos % _NANOS)


def duration_from_message(message: Duration, field: str) -> float:
    """A Duration as seconds. Raises `InvalidSpec` when it is negative or out of range."""
    if message.seconds < 0 or message.nanos < 0 or message.seconds > _LONGEST or message.nanos >= _NANOS:
        raise InvalidSpec(field, "a duration is not negative and below ten thousand years")
    return (message.seconds * _NANOS + message.nanos) / _NANOS


def timestamp_to_message(seconds: float) -> Timestamp | None:
    """Seconds since the epoch as a Timestamp; none for 0, which means unknown, or for no time at all."""
    if not 0 < seconds <= _LAST_SECOND:
        return None
    nanos = round(seconds * _NANOS)
    return Timestamp(seconds=nanos // _NANOS, nanos=nanos % _NANOS)


def timestamp_from_message(message: Timestamp) -> float:
    """A Timestamp as seconds since the epoch; 0 if it is not set."""
    return (message.seconds * _NANOS + message.nanos) / _NANOS


def run_spec_to_message(spec: types.RunSpec) -> run.RunSpec:
    """The message of a spec, with nothing filled in. Raises `InvalidSpec` for what no message can hold."""
    try:
        return _run_spec_to_message(spec)
    except (ValueError, TypeError) as error:
        raise InvalidSpec("spec", f"it cannot be sent: {error}") from None


def _run_spec_to_message(spec: types.RunSpec) -> run.RunSpec:
    return run.RunSpec(
        run_id=spec.run_id,
        roles=[_role_to_message(role) for role in spec.roles],
        nodes=spec.nodes,
        rendezvous=_rendezvous_to_message(spec.rendezvous),
        max_restarts=spec.max_restarts,
        max_membership_changes=spec.max_membership_changes,
        stop_grace=_optional_duration(spec.stop_grace, "stop_grace"),
        monitor_interval=_optional_duration(spec.monitor_interval, "monitor_interval"),
        labels=dict(spec.labels),
        no_rejoin=spec.no_rejoin,
        external_agents=spec.external_agents,
        on_isolation=_ISOLATIONS[spec.on_isolation],
        controller_lease=_optional_duration(spec.controller_lease, "controller_lease"),
        preload=spec.preload,
        standby=spec.standby,
    )


def run_spec_from_message(message: run.RunSpec) -> types.RunSpec:
    """The spec of a message."""
    return types.RunSpec(
        run_id=message.run_id,
        roles=tuple(_role_from_message(role) for role in message.roles),
        nodes=tuple(message.nodes),
        rendezvous=_rendezvous_from_message(message.rendezvous),
        max_restarts=message.max_restarts,
        max_membership_changes=(
            message.max_membership_changes if message.HasField("max_membership_changes") else None
        ),
        stop_grace=_duration_field(message, "stop_grace"),
        monitor_interval=_duration_field(message, "monitor_interval"),
        labels=dict(message.labels),
        no_rejoin=message.no_rejoin,
        external_agents=message.external_agents,
        on_isolation=_enum_from_message(
            _ISOLATIONS, message.on_isolation, types.IsolationPolicy.KEEP, "on_isolation"
        ),
        controller_lease=_duration_field(message, "controller_lease"),
        preload=tuple(message.preload),
        standby=message.standby,
    )


def _role_to_message(role: types.RoleSpec) -> run.RoleSpec:
    return run.RoleSpec(
        role=role.role,
        nodes=role.nodes,
        local_world_size=_local_world_size_to_message(role.local_world_size),
        local_world_size_by_node={
            node: _local_world_size_to_message(size) for node, size in role.local_world_size_by_node.items()
        },
        command=run.Command(
            entrypoint=role.command.entrypoint,
            arguments=role.command.arguments,
            kind=_KINDS[role.command.kind],
            python=role.command.python,
            working_directory=role.command.working_directory,
        ),
        env=dict(role.env),
        devices=role.devices,
        master_addr=role.master_addr,
        master_port=role.master_port,
        log_dir=role.log_dir,
    )


def _role_from_message(message: run.RoleSpec) -> types.RoleSpec:
    return types.RoleSpec(
        role=message.role or "default",
        nodes=tuple(message.nodes),
        local_world_size=_local_world_size_from_message(message.local_world_size),
        local_world_size_by_node={
            node: _local_world_size_from_message(size)
            for node, size in message.local_world_size_by_node.items()
        },
        command=types.Command(
            entrypoint=message.command.entrypoint,
            arguments=tuple(message.command.arguments),
            kind=_enum_from_message(
                _KINDS, message.command.kind, types.EntrypointKind.SCRIPT, "command.kind"
            ),
            python=message.command.python,
            working_directory=message.command.working_directory,
        ),
        env=dict(message.env),
        devices=tuple(message.devices),
        master_addr=message.master_addr,
        master_port=message.master_port,
        log_dir=message.log_dir,
    )


def _local_world_size_to_message(size: types.LocalWorldSize) -> run.LocalWorldSize:
    if isinstance(size, types.LocalWorldSizeRule):
        return run.LocalWorldSize(rule=_RULES[size])
    return run.LocalWorldSize(count=size)


def _local_world_size_from_message(message: run.LocalWorldSize) -> types.LocalWorldSize:
    if message.WhichOneof("size") == "rule":
        return _enum_from_message(_RULES, message.rule, types.LocalWorldSizeRule.AUTO, "local_world_size")
    return message.count if message.WhichOneof("size") else 1


_RENDEZVOUS_DURATIONS = ("join_timeout", "last_call", "hub_timeout", "heartbeat", "lease", "reattach_window")


def _rendezvous_to_message(spec: types.RendezvousSpec) -> run.RendezvousSpec:
    return run.RendezvousSpec(
        min_members=spec.min_members,
        max_members=spec.max_members,
        join_timeout=_optional_duration(spec.join_timeout, "join_timeout"),
        last_call=_optional_duration(spec.last_call, "last_call"),
        hub_timeout=_optional_duration(spec.hub_timeout, "hub_timeout"),
        heartbeat=_optional_duration(spec.heartbeat, "heartbeat"),
        lease=_optional_duration(spec.lease, "lease"),
        reattach_window=_optional_duration(spec.reattach_window, "reattach_window"),
    )


def _rendezvous_from_message(message: run.RendezvousSpec) -> types.RendezvousSpec:
    durations = {
        name: duration_from_message(getattr(message, name), f"rendezvous.{name}")
        for name in _RENDEZVOUS_DURATIONS
        if message.HasField(name)  # type: ignore[arg-type]
    }
    return types.RendezvousSpec(min_members=message.min_members, max_members=message.max_members, **durations)


def failure_to_message(failure: types.Failure) -> run.Failure:
    """The message of a failure."""
    return run.Failure(
        node_id=failure.node_id,
        role=failure.role,
        round=failure.round,
        rank=failure.rank,
        local_rank=failure.local_rank,
        pid=failure.pid,
        exit_code=failure.exit_code,
        signal=failure.signal,
        message=failure.message,
        stderr_tail=failure.stderr_tail,
        time=timestamp_to_message(failure.time),
        error_file=failure.error_file,
        log_dir=failure.log_dir,
    )


def failure_from_message(message: run.Failure) -> types.Failure:
    """The failure of a message."""
    return types.Failure(
        node_id=message.node_id,
        role=message.role,
        round=message.round,
        rank=message.rank,
        local_rank=message.local_rank,
        pid=message.pid,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        message=message.message,
        stderr_tail=message.stderr_tail,
        time=timestamp_from_message(message.time),
        error_file=message.error_file,
        log_dir=message.log_dir,
    )


def run_status_to_message(status: types.RunStatus) -> run.RunStatus:
    """The message of a run's status."""
    return run.RunStatus(
        run_id=status.run_id,
        incarnation=status.incarnation,
        phase=PHASES[status.phase],
        round=status.round,
        restart_count=status.restart_count,
        max_restarts=status.max_restarts,
        min_members=status.min_members,
        max_members=status.max_members,
        missing=status.missing,
        spares=status.spares,
        first_failure=failure_to_message(status.first_failure) if status.first_failure else None,
        nodes=[_node_status_to_message(node) for node in status.nodes],
        membership_changes=status.membership_changes,
        revision=status.revision,
        reason=status.reason,
        hub_address=status.hub_address,
        from_hub=status.from_hub,
        started_at=timestamp_to_message(status.started_at),
        finished_at=timestamp_to_message(status.finished_at),
        labels=dict(status.labels),
        hub_unreachable_since=timestamp_to_message(status.hub_unreachable_since),
        controller_lease_until=timestamp_to_message(status.controller_lease_until),
        join_deadline=timestamp_to_message(status.join_deadline),
    )


def run_status_from_message(message: run.RunStatus) -> types.RunStatus:
    """The run's status of a message."""
    return types.RunStatus(
        run_id=message.run_id,
        incarnation=message.incarnation,
        phase=phase_from_message(message.phase),
        round=message.round,
        restart_count=message.restart_count,
        max_restarts=message.max_restarts,
        min_members=message.min_members,
        max_members=message.max_members,
        missing=tuple(message.missing),
        spares=tuple(message.spares),
        first_failure=(
            failure_from_message(message.first_failure) if message.HasField("first_failure") else None
        ),
        nodes=tuple(_node_status_from_message(node) for node in message.nodes),
        membership_changes=message.membership_changes,
        revision=message.revision,
        reason=message.reason,
        hub_address=message.hub_address,
        from_hub=message.from_hub,
        started_at=timestamp_from_message(message.started_at),
        finished_at=timestamp_from_message(message.finished_at),
        labels=dict(message.labels),
        hub_unreachable_since=timestamp_from_message(message.hub_unreachable_since),
        controller_lease_until=timestamp_from_message(message.controller_lease_until),
        join_deadline=timestamp_from_message(message.join_deadline),
    )


def _node_status_to_message(node: types.NodeStatus) -> run.NodeStatus:
    return run.NodeStatus(
        node_id=node.node_id,
        address=node.address,
        phase=PHASES[node.phase],
        detached=node.detached,
        reason=node.reason,
        groups=[_group_status_to_message(group) for group in node.groups],
        name=node.name,
        conditions=node.conditions,
    )


def _node_status_from_message(message: run.NodeStatus) -> types.NodeStatus:
    return types.NodeStatus(
        node_id=message.node_id,
        address=message.address,
        phase=phase_from_message(message.phase),
        detached=message.detached,
        reason=message.reason,
        groups=tuple(_group_status_from_message(group) for group in message.groups),
        name=message.name,
        conditions=dict(message.conditions),
    )


def _group_status_to_message(group: types.GroupStatus) -> run.GroupStatus:
    return run.GroupStatus(
        role=group.role,
        phase=PHASES[group.phase],
        worker_state=WORKER_STATES[group.worker_state],
        group_rank=group.group_rank,
        workers=[_worker_status_to_message(worker) for worker in group.workers],
        round=group.round,
        reason=group.reason,
        host_pid=group.host_pid,
        local_world_size=group.local_world_size,
        failures=[failure_to_message(failure) for failure in group.failures],
    )


def _group_status_from_message(message: run.GroupStatus) -> types.GroupStatus:
    return types.GroupStatus(
        role=message.role,
        phase=phase_from_message(message.phase),
        worker_state=_worker_state_from_message(message.worker_state),
        group_rank=message.group_rank if message.HasField("group_rank") else None,
        workers=tuple(_worker_status_from_message(worker) for worker in message.workers),
        round=message.round,
        reason=message.reason,
        host_pid=message.host_pid,
        local_world_size=message.local_world_size,
        failures=tuple(failure_from_message(failure) for failure in message.failures),
    )


def _worker_status_to_message(worker: types.WorkerStatus) -> run.WorkerStatus:
    return run.WorkerStatus(
        role=worker.role,
        rank=worker.rank,
        local_rank=worker.local_rank,
        role_rank=worker.role_rank,
        pid=worker.pid,
        state=WORKER_STATES[worker.state],
        exit_code=worker.exit_code,
        signal=worker.signal,
        started_at=timestamp_to_message(worker.started_at),
        log_dir=worker.log_dir,
    )


def _worker_status_from_message(message: run.WorkerStatus) -> types.WorkerStatus:
    return types.WorkerStatus(
        role=message.role,
        rank=message.rank,
        local_rank=message.local_rank,
        role_rank=message.role_rank,
        pid=message.pid,
        state=_worker_state_from_message(message.state),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        started_at=timestamp_from_message(message.started_at),
        log_dir=message.log_dir,
    )


def controller_lease_to_message(lease: types.ControllerLease) -> service.RenewLeaseResponse:
    """The answer to a renewal."""
    return service.RenewLeaseResponse(
        controller_lease=duration_to_message(lease.duration), until=timestamp_to_message(lease.until)
    )


def controller_lease_from_message(message: service.RenewLeaseResponse) -> types.ControllerLease:
    """The lease of a renewal's answer."""
    return types.ControllerLease(
        duration=duration_from_message(message.controller_lease, "controller_lease"),
        until=timestamp_from_message(message.until),
    )


def run_request_to_message(request: types.RunRequest) -> service.RunRequest:
    """The message of a Run."""
    return service.RunRequest(
        request_id=request.request_id,
        spec=run_spec_to_message(request.spec),
        incarnation=request.incarnation,
        hub_address=request.hub_address,
        node_name=request.node_name,
        passed_env=dict(request.passed_env),
        join=request.join,
    )


def run_request_from_message(message: service.RunRequest) -> types.RunRequest:
    """The Run of a message."""
    return types.RunRequest(
        request_id=message.request_id,
        spec=run_spec_from_message(message.spec),
        incarnation=message.incarnation,
        hub_address=message.hub_address,
        node_name=message.node_name,
        passed_env=dict(message.passed_env),
        join=message.join,
    )


def stop_request_to_message(request: types.StopRequest) -> service.StopRequest:
    """The message of a Stop."""
    return service.StopRequest(
        run_id=request.run_id,
        incarnation=request.incarnation,
        grace=_optional_duration(request.grace, "grace"),
        scope=_SCOPES[request.scope],
        reason=request.reason,
    )


def stop_request_from_message(message: service.StopRequest) -> types.StopRequest:
    """The Stop of a message."""
    return types.StopRequest(
        run_id=message.run_id,
        incarnation=message.incarnation,
        grace=_duration_field(message, "grace"),
        scope=_enum_from_message(_SCOPES, message.scope, types.StopScope.TERMINATE, "scope"),
        reason=message.reason,
    )


def logs_request_to_message(request: types.LogsRequest) -> service.LogsRequest:
    """The message of a Logs."""
    return service.LogsRequest(
        run_id=request.run_id,
        incarnation=request.incarnation,
        ranks=request.ranks,
        streams=[_STREAMS[stream] for stream in request.streams],
        tail_lines=request.tail_lines,
        follow=request.follow,
        round=request.round,
        resume=[
            service.LogPosition(
                role=position.role,
                round=position.round,
                local_rank=position.local_rank,
                stream=_STREAMS[position.stream],
                offset=position.offset,
            )
            for position in request.resume
        ],
        role=request.role,
        all_rounds=request.all_rounds,
    )


def logs_request_from_message(message: service.LogsRequest) -> types.LogsRequest:
    """The Logs of a message."""
    return types.LogsRequest(
        run_id=message.run_id,
        incarnation=message.incarnation,
        ranks=tuple(message.ranks),
        streams=tuple(_log_stream_from_message(stream) for stream in message.streams),
        tail_lines=message.tail_lines if message.HasField("tail_lines") else None,
        follow=message.follow,
        round=message.round,
        resume=tuple(
            types.LogPosition(
                role=position.role,
                round=position.round,
                local_rank=position.local_rank,
                stream=_log_stream_from_message(position.stream),
                offset=position.offset,
            )
            for position in message.resume
        ),
        role=message.role,
        all_rounds=message.all_rounds,
    )


def log_chunk_to_message(chunk: types.LogChunk) -> service.LogChunk:
    """The message of a piece of a log."""
    return service.LogChunk(
        role=chunk.role,
        round=chunk.round,
        rank=chunk.rank,
        local_rank=chunk.local_rank,
        stream=_STREAMS[chunk.stream],
        offset=chunk.offset,
        data=chunk.data,
        node_id=chunk.node_id,
    )


def log_chunk_from_message(message: service.LogChunk) -> types.LogChunk:
    """The piece of a log of a message."""
    return types.LogChunk(
        role=message.role,
        round=message.round,
        rank=message.rank,
        local_rank=message.local_rank,
        stream=_log_stream_from_message(message.stream),
        offset=message.offset,
        data=message.data,
        node_id=message.node_id,
    )


def log_gap_to_message(gap: types.LogGap) -> service.LogGap:
    """The message of what a log has lost."""
    return service.LogGap(
        role=gap.role,
        round=gap.round,
        rank=gap.rank,
        local_rank=gap.local_rank,
        stream=_STREAMS[gap.stream],
        offset=gap.offset,
        size=gap.size,
        node_id=gap.node_id,
    )


def log_gap_from_message(message: service.LogGap) -> types.LogGap:
    """What a log has lost, of a message."""
    return types.LogGap(
        role=message.role,
        round=message.round,
        rank=message.rank,
        local_rank=message.local_rank,
        stream=_log_stream_from_message(message.stream),
        offset=message.offset,
        size=message.size,
        node_id=message.node_id,
    )


def stream_end_to_message(end: types.StreamEnd) -> service.StreamEnd:
    """The message of a stream's end."""
    return service.StreamEnd(cause=_END_CAUSES[end.cause], reason=end.reason)


def stream_end_from_message(message: service.StreamEnd) -> types.StreamEnd:
    """The stream's end of a message."""
    cause = _enum_from_message(_END_CAUSES, message.cause, types.StreamEndCause.FINISHED, "cause")
    return types.StreamEnd(cause=cause, reason=message.reason)


_PLAIN_NODE_FIELDS = (
    "node_id",
    "agent_uid",
    "version",
    "python_version",
    "grpc_version",
    "protobuf_version",
    "advertised_address",
    "pid",
    "cpus",
    "gpus",
    "memory_total_bytes",
    "memory_available_bytes",
    "load_1m",
    "load_5m",
    "load_15m",
    "state_dir_total_bytes",
    "state_dir_free_bytes",
    "state_dir",
    "ending",
    "agentd_resident_bytes",
    "hostname",
)


def node_info_to_message(info: types.NodeInfo) -> service.GetNodeResponse:
    """The message of a node's facts."""
    message = service.GetNodeResponse(
        listen_addresses=info.listen_addresses,
        conditions=info.conditions,
        condition_details=info.condition_details,
        started_at=timestamp_to_message(info.started_at),
        groups=map(_group_ref_to_message, info.groups),
        drain=None if info.drain is None else drain_to_message(info.drain),
        hub_of=map(_run_ref_to_message, info.hub_of),
    )
    for name in _PLAIN_NODE_FIELDS:
        setattr(message, name, getattr(info, name))
    return message


def node_info_from_message(message: service.GetNodeResponse) -> types.NodeInfo:
    """The node's facts of a message."""
    return types.NodeInfo(
        listen_addresses=tuple(message.listen_addresses),
        conditions=tuple(message.conditions),
        condition_details=dict(message.condition_details),
        started_at=timestamp_from_message(message.started_at),
        groups=tuple(map(_group_ref_from_message, message.groups)),
        drain=drain_from_message(message.drain) if message.HasField("drain") else None,
        hub_of=tuple(map(_run_ref_from_message, message.hub_of)),
        **{name: getattr(message, name) for name in _PLAIN_NODE_FIELDS},
    )


def drain_request_to_message(request: types.DrainRequest) -> service.DrainRequest:
    """The message of a Drain call."""
    return service.DrainRequest(
        mode=_DRAIN_MODES[request.mode],
        deadline=_optional_duration(request.deadline, "deadline"),
        grace=_optional_duration(request.grace, "grace"),
        reason=request.reason,
    )


def drain_request_from_message(message: service.DrainRequest) -> types.DrainRequest:
    """The Drain call of a message."""
    return types.DrainRequest(
        mode=_enum_from_message(_DRAIN_MODES, message.mode, types.DrainMode.WAIT, "mode"),
        deadline=_duration_field(message, "deadline"),
        grace=_duration_field(message, "grace"),
        reason=message.reason,
    )


def drain_to_message(drain: types.Drain) -> service.Drain:
    """The message of a drain in force."""
    return service.Drain(
        mode=_DRAIN_MODES[drain.mode],
        since=timestamp_to_message(drain.since),
        deadline=timestamp_to_message(drain.deadline),
        reason=drain.reason,
        grace=_optional_duration(drain.grace, "grace"),
    )


def drain_from_message(message: service.Drain) -> types.Drain:
    """The drain of a message."""
    return types.Drain(
        mode=_enum_from_message(_DRAIN_MODES, message.mode, types.DrainMode.WAIT, "mode"),
        since=timestamp_from_message(message.since),
        deadline=timestamp_from_message(message.deadline),
        reason=message.reason,
        grace=_duration_field(message, "grace"),
    )


def drain_report_to_message(report: types.DrainReport) -> service.DrainResponse:
    """The answer to a Drain call."""
    return service.DrainResponse(
        drain=drain_to_message(report.drain),
        groups=map(_group_ref_to_message, report.groups),
        hub_of=map(_run_ref_to_message, report.hub_of),
    )


def drain_report_from_message(message: service.DrainResponse) -> types.DrainReport:
    """What the answer to a Drain call tells."""
    return types.DrainReport(
        drain=drain_from_message(message.drain),
        groups=tuple(map(_group_ref_from_message, message.groups)),
        hub_of=tuple(map(_run_ref_from_message, message.hub_of)),
    )


def _group_ref_to_message(ref: types.GroupRef) -> service.GroupRef:
    return service.GroupRef(
        run_id=ref.run_id, incarnation=ref.incarnation, role=ref.role, phase=PHASES[ref.phase]
    )


def _group_ref_from_message(message: service.GroupRef) -> types.GroupRef:
    return types.GroupRef(
        run_id=message.run_id,
        incarnation=message.incarnation,
        role=message.role,
        phase=phase_from_message(message.phase),
    )


def _run_ref_to_message(ref: types.RunRef) -> service.RunRef:
    return service.RunRef(run_id=ref.run_id, incarnation=ref.incarnation)


def _run_ref_from_message(message: service.RunRef) -> types.RunRef:
    return types.RunRef(run_id=message.run_id, incarnation=message.incarnation)


def phase_from_message(value: run.Phase.ValueType) -> types.Phase:
    """A phase; one that this version does not know is LOST: nobody here can say how it stands."""
    return _PHASES_BACK.get(value, types.Phase.LOST) if value != 0 else types.Phase.PENDING


def _worker_state_from_message(value: run.WorkerState.ValueType) -> types.WorkerState:
    return _WORKER_STATES_BACK.get(value, types.WorkerState.UNKNOWN)


def _log_stream_from_message(value: service.LogStream.ValueType) -> types.LogStream:
    return _enum_from_message(_STREAMS, value, types.LogStream.STDOUT, "stream")


_PHASES_BACK = {value: phase for phase, value in PHASES.items()}
_WORKER_STATES_BACK = {value: state for state, value in WORKER_STATES.items()}


def _enum_from_message(table: Mapping[E, int], value: int, unset: E, field: str) -> E:
    """The member for a number; a choice from a newer peer cannot be guessed, so it is refused."""
    if not value:
        return unset
    for member, number in table.items():
        if number == value:
            return member
    known = ", ".join(str(member.value) for member in table)
    raise InvalidSpec(field, f"value {value} is not known to this version, which knows {known}")


def _optional_duration(seconds: float | None, field: str = "duration") -> Duration | None:
    return None if seconds is None else duration_to_message(seconds, field)


def _duration_field(
    message: run.RunSpec | service.StopRequest | service.DrainRequest | service.Drain, name: str
) -> float | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    return duration_from_message(getattr(message, name), name)
