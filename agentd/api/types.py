"""What a run is and how it stands, as frozen values. Mirrors `proto/agentd/v1/run.proto`.

Both sides of the wire, the hub and the worker groups speak in these types; `agentd.api.convert`
alone turns them into messages. Durations are seconds as `float`, times are seconds since the epoch.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import field
from typing import TypeAlias

from agentd.api.states import TERMINAL as TERMINAL
from agentd.api.states import Phase as Phase
from agentd.api.states import WorkerState as WorkerState
from agentd.quickdata import dataclass

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
"""Run ids and role names: they become folder names, so nothing in them may walk a path."""
MAX_DURATION = 366 * 86_400.0
"""Longest time in a spec or a drain, in seconds."""
SHORTEST_LEASE = 1.0
"""Seconds a controller has at least to renew its lease."""


class EntrypointKind(str, enum.Enum):
    """How a command's entrypoint becomes a process."""

    SCRIPT = "script"
    """`python -u entrypoint arguments...`"""
    MODULE = "module"
    """`python -u -m entrypoint arguments...`"""
    EXECUTABLE = "executable"
    """`entrypoint arguments...`, looked up on PATH if it has no slash."""


class LocalWorldSizeRule(str, enum.Enum):
    """A number of workers that the node finds from its own hardware, without torch."""

    AUTO = "auto"
    """GPUs if there are any, else CPUs."""
    CPU = "cpu"
    GPU = "gpu"


LocalWorldSize: TypeAlias = int | LocalWorldSizeRule


class IsolationPolicy(str, enum.Enum):
    """What becomes of a node's workers once its hub has not answered for a lease."""

    KEEP = "keep"
    """They go on; the round file keeps those of an old round from writing."""
    STOP = "stop"
    """They are stopped with their grace, and the node joins the next round."""


class StopScope(str, enum.Enum):
    """How far a stop reaches."""

    TERMINATE = "terminate"
    """The run ends on every node."""
    LEAVE = "leave"
    """This node leaves; the others go on."""


class DrainMode(str, enum.Enum):
    """What becomes of the runs of a drained node."""

    WAIT = "wait"
    """They go on to their end, over restarts too."""
    MOVE = "move"
    """The node leaves them; the others go on."""


class LogStream(str, enum.Enum):
    """One of a worker's two output files."""

    STDOUT = "stdout"
    STDERR = "stderr"


class StreamEndCause(str, enum.Enum):
    """Why the server ended a stream."""

    FINISHED = "finished"
    AGENTD_ENDING = "agentd_ending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program and how it is started."""

    entrypoint: str
    arguments: tuple[str, ...] = ()
    """`${local_rank}` in an argument is replaced for each worker."""
    kind: EntrypointKind = EntrypointKind.SCRIPT
    python: str = ""
    """Python of SCRIPT and MODULE. Empty: `python3` on the node's PATH."""
    working_directory: str = ""
    """Empty: the home of agentd's user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpec:
    """One kind of worker and the program it runs."""

    command: Command
    role: str = "default"
    nodes: tuple[str, ...] = ()
    """Names of `RunSpec.nodes` that have this role. Empty: all of them."""
    local_world_size: LocalWorldSize = 1
    local_world_size_by_node: Mapping[str, LocalWorldSize] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[int, ...] = ()
    """Shown to the workers in CUDA_VISIBLE_DEVICES; not shared by two live runs of a node."""
    master_addr: str = ""
    master_port: int = 0
    log_dir: str = ""
    """Root of the log folders on the node. Empty: the state directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousSpec:
    """Sizes count members: one worker group, (node, role), each. `None` means the default."""

    min_members: int = 0
    max_members: int = 0
    """Both 0: every listed (node, role)."""
    join_timeout: float | None = None
    last_call: float | None = None
    hub_timeout: float | None = None
    heartbeat: float | None = None
    lease: float | None = None
    reattach_window: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One distributed execution over one or more nodes. `None` means the default."""

    run_id: str
    roles: tuple[RoleSpec, ...]
    nodes: tuple[str, ...] = ()
    """Names the caller uses for its nodes. Empty: the membership is open."""
    rendezvous: RendezvousSpec = RendezvousSpec()
    max_restarts: int = 0
    max_membership_changes: int | None = None
    """None: unlimited."""
    stop_grace: float | None = None
    monitor_interval: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    no_rejoin: bool = False
    external_agents: bool = False
    """Its members are agents of the elastic library in processes of their own; roles have a name only."""
    on_isolation: IsolationPolicy = IsolationPolicy.KEEP
    controller_lease: float | None = None
    """The run is stopped when nobody has renewed it for so long. None: nobody needs to."""
    preload: tuple[str, ...] = ()
    """Modules that workers find imported, being forked from a process that has done it once."""
    standby: bool = False
    """With `preload`: the next round's workers wait, forked already, while this round runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A worker that failed by itself. Workers that agentd stopped are never one."""

    node_id: str = ""
    role: str = ""
    round: int = 0
    rank: int = 0
    local_rank: int = 0
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    stderr_tail: str = ""
    time: float = 0.0
    error_file: str = ""
    log_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker process."""

    role: str
    rank: int
    local_rank: int
    role_rank: int
    pid: int
    state: WorkerState
    exit_code: int | None = None
    signal: int | None = None
    started_at: float = 0.0
    log_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """A worker group: one role on one node."""

    role: str
    phase: Phase
    worker_state: WorkerState
    group_rank: int | None = None
    workers: tuple[WorkerStatus, ...] = ()
    round: int = 0
    reason: str = ""
    host_pid: int = 0
    local_world_size: int = 0
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One node's part in a run."""

    node_id: str
    address: str = ""
    phase: Phase = Phase.PENDING
    detached: bool = False
    reason: str = ""
    groups: tuple[GroupStatus, ...] = ()
    name: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What degrades the run here, by name: a sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run as its hub knows it, or, where `from_hub` is false, as one node does."""

    run_id: str
    incarnation: int = 0
    phase: Phase = Phase.PENDING
    round: int = 0
    restart_count: int = 0
    max_restarts: int = 0
    min_members: int = 0
    max_members: int = 0
    missing: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()
    first_failure: Failure | None = None
    nodes: tuple[NodeStatus, ...] = ()
    membership_changes: int = 0
    revision: int = 0
    reason: str = ""
    hub_address: str = ""
    from_hub: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    hub_unreachable_since: float = 0.0
    """Of the node that gave this: when its hub stopped to answer. 0: it answers."""
    controller_lease_until: float = 0.0
    """When a run with a controller lease is stopped unless it is renewed, by the hub's clock. 0: never."""
    join_deadline: float = 0.0
    """When a run with too few members for a round fails, by the hub's clock. 0: it does not wait for any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerLease:
    """How long a run lives that nobody renews any more."""

    duration: float
    """From one renewal to the end, as the run's spec has it."""
    until: float
    """When it ends unless it is renewed before, by the hub's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The caller's wish to have a run, for one node."""

    request_id: str
    spec: RunSpec
    incarnation: int = 0
    hub_address: str = ""
    node_name: str = ""
    passed_env: Mapping[str, str] = field(default_factory=dict)
    join: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest:
    """The caller's wish to end a run, or this node's part of it."""

    run_id: str
    incarnation: int = 0
    grace: float | None = None
    scope: StopScope = StopScope.TERMINATE
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """A byte of one log file."""

    role: str
    round: int
    local_rank: int
    stream: LogStream
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsRequest:
    """Which worker output to read, from where, for how long."""

    run_id: str
    incarnation: int = 0
    ranks: tuple[int, ...] = ()
    streams: tuple[LogStream, ...] = ()
    tail_lines: int | None = None
    follow: bool = False
    round: int = 0
    resume: tuple[LogPosition, ...] = ()
    role: str = ""
    all_rounds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """A piece of one log file, at most 256 KiB."""

    role: str
    round: int
    rank: int
    local_rank: int
    stream: LogStream
    offset: int
    data: bytes
    node_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogGap:
    """The oldest part of one log file, which was removed to keep it within its cap."""

    role: str
    round: int
    rank: int
    local_rank: int
    stream: LogStream
    offset: int
    size: int
    """Bytes. 0: the file was cut short and begins anew at offset 0."""
    node_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """Why a stream ends though the caller did not end it."""

    cause: StreamEndCause
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRef:
    """A worker group of a node, by name."""

    run_id: str
    incarnation: int
    role: str
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """A run by its name."""

    run_id: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequest:
    """The operator's wish to have a node empty."""

    mode: DrainMode = DrainMode.WAIT
    deadline: float | None = None
    """Mode WAIT: in so many seconds the node leaves what is still there. None: never."""
    grace: float | None = None
    """From SIGTERM to SIGKILL for workers of runs that are left. None: each run's own."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A node that takes no new run because an operator wants it empty."""

    mode: DrainMode
    since: float
    """Of the first drain since the node was given back, by its clock."""
    deadline: float = 0.0
    """When the node leaves what is still there, by its clock. 0: never."""
    reason: str = ""
    grace: float | None = None
    asked_at: float = 0.0
    """When that deadline was asked for, by the node's clock; only the node knows. 0: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """A drain as it is in force, and what is still on the node."""

    drain: Drain
    groups: tuple[GroupRef, ...] = ()
    hub_of: tuple[RunRef, ...] = ()
    """Live runs whose hub is the node: they would end with its machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """Who a node is and how it is."""

    node_id: str
    agent_uid: str = ""
    version: str = ""
    python_version: str = ""
    grpc_version: str = ""
    protobuf_version: str = ""
    listen_addresses: tuple[str, ...] = ()
    advertised_address: str = ""
    pid: int = 0
    started_at: float = 0.0
    cpus: int = 0
    gpus: int = 0
    memory_total_bytes: int = 0
    memory_available_bytes: int = 0
    load_1m: float = 0.0
    load_5m: float = 0.0
    load_15m: float = 0.0
    state_dir_total_bytes: int = 0
    state_dir_free_bytes: int = 0
    state_dir: str = ""
    ending: bool = False
    """Its agentd is about to end."""
    groups: tuple[GroupRef, ...] = ()
    conditions: tuple[str, ...] = ()
    condition_details: Mapping[str, str] = field(default_factory=dict)
    """For people: what a condition is about, by its name."""
    agentd_resident_bytes: int = 0
    hostname: str = ""
    drain: Drain | None = None
    """None: it takes runs, as far as its operator is concerned."""
    hub_of: tuple[RunRef, ...] = ()
    """Live runs whose hub is here, with or without workers here."""
