"""What a host and its agentd say to each other: length-prefixed JSON frames on a Unix stream socket.

Host and agentd may be of different versions, so what a newer one adds is ignored and what an older one lacks
has its default; what is there must have its type. Anything else is a `WireError`, never another exception.
"""

from __future__ import annotations

import enum
import functools
import json
import struct
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeAlias, Union, get_args, get_origin, get_type_hints

from agentd.core.assignment import Assignment

VERSION = 1
MAX_FRAME = 16 * 1024 * 1024

_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """The other side does not speak this protocol, or speaks it wrongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """All a host needs to run its group."""

    run_id: str
    incarnation: int
    role: str
    node_id: str
    token: str
    local_world_size: int
    argv: tuple[str, ...]
    """Resolved; `${local_rank}` still stands for itself."""
    env: Mapping[str, str]
    """What the workers' environment is before torch's contract."""
    cwd: str
    stop_grace_s: float
    monitor_interval_s: float
    log_root: str
    max_restarts: int = 0
    master_addr: str = ""
    """Replaces the rendezvous' address of rank 0."""
    master_port: int = 0
    mode: str = "stop"
    """`stop`: the workers end with their agentd. `keep`: they outlive it, and the host dials the next one."""


# --- host -> agentd: hello, then reports, each with a sequence number and its time


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first frame of a connection."""

    type: ClassVar[str] = "hello"
    run_id: str
    incarnation: int
    role: str
    token: str
    pid: int
    start_time: int
    boot_id: str
    last_sequence: int = 0
    """Of the reports written to host.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What all reports have."""

    type: ClassVar[str] = ""
    sequence: int = 0
    time: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Report):
    """Nothing of `round` runs here any more; the host holds `master_port` for the next one."""

    type: ClassVar[str] = "ready"
    round: int
    master_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedWorker:
    """A worker process."""

    local_rank: int
    rank: int
    role_rank: int
    pid: int
    start_time: int
    started_at: float
    log_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Report):
    """All workers of the round run."""

    type: ClassVar[str] = "started"
    round: int
    workers: tuple[StartedWorker, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited(Report):
    """One worker ended."""

    type: ClassVar[str] = "exited"
    round: int
    local_rank: int
    rank: int
    pid: int
    exit_code: int | None = None
    signal: int | None = None
    torn_down: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedWorker:
    """A worker that failed by itself, and how long ago by the host's clock."""

    rank: int
    local_rank: int
    pid: int
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    stderr_tail: str = ""
    time: float = 0.0
    error_file: str = ""
    log_dir: str = ""
    age_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Report):
    """The round cannot go on here. Without failures, `reason` tells why."""

    type: ClassVar[str] = "failed"
    round: int
    failures: tuple[FailedWorker, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Report):
    """All workers of the round succeeded and nothing of them is left; the host exits."""

    type: ClassVar[str] = "done"
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unkillable(Report):
    """SIGKILL did not end these processes in time."""

    type: ClassVar[str] = "unkillable"
    round: int
    pids: tuple[int, ...]
    wait_channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Report):
    """The group's agent recorded an event; for the journal, nothing else follows from it."""

    type: ClassVar[str] = "recorded"
    event: str
    """JSON, as `agentd.elastic.events` writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Report):
    """The last frame: the host exits."""

    type: ClassVar[str] = "ended"
    state: str
    reason: str = ""


# --- agentd -> host


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The answer to hello: what to run."""

    type: ClassVar[str] = "welcome"
    spec: HostSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The other answer to hello: the host ends."""

    type: ClassVar[str] = "refused"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """The group's place in a formed round."""

    type: ClassVar[str] = "assignment"
    place: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRound:
    """Stop the workers of the round, then report ready."""

    type: ClassVar[str] = "stop_round"
    round: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishHost:
    """Stop whatever runs, report ended, exit. A second one shortens the grace."""

    type: ClassVar[str] = "finish"
    state: str
    reason: str = ""
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalWorkers:
    """Send a signal to these global ranks, or to all."""

    type: ClassVar[str] = "signal"
    signal: int
    ranks: tuple[int, ...] = ()


ReportFrame: TypeAlias = Ready | Started | Exited | Failed | Done | Unkillable | Recorded | Ended
HostFrame: TypeAlias = Hello | Ready | Started | Exited | Failed | Done | Unkillable | Recorded | Ended
AgentFrame: TypeAlias = Welcome | Refused | Assigned | StopRound | FinishHost | SignalWorkers
Frame: TypeAlias = HostFrame | AgentFrame

FRAMES: Mapping[str, type[Frame]] = {
    cls.type: cls
    for cls in (
        Hello,
        Ready,
        Started,
        Exited,
        Failed,
        Done,
        Unkillable,
        Recorded,
        Ended,
        Welcome,
        Refused,
        Assigned,
        StopRound,
        FinishHost,
        SignalWorkers,
    )
}


def encode(frame: Frame) -> bytes:
    """The frame as it goes over the socket."""
    payload = as_json(frame)
    if len(payload) > MAX_FRAME:
        raise WireError(f"a {frame.type} frame of {len(payload)} bytes is over the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(payload)) + payload


def as_json(frame: Frame) -> bytes:
    """The frame's object, as it also stands in host.jsonl; one line."""
    body = {field.name: getattr(frame, field.name) for field in fields(frame)}
    tagged = {"version": VERSION, "type": frame.type, **body}
    return json.dumps(tagged, separators=(",", ":"), default=_plain).encode()


def decode(payload: bytes) -> Frame:
    """The frame of one payload."""
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise WireError("a frame is no JSON object")
    if body.get("version") != VERSION:
        raise WireError(
            f"version {body.get('version')!r} of the host protocol is not known, this is {VERSION}"
        )
    kind = body.get("type")
    cls = FRAMES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise WireError(f"no frame has the type {kind!r:.60}")
    frame: Frame = build(cls, body, cls.type)
    return frame


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. Raises `WireError`; the stream is of no use then."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise WireError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield decode(payload)


def _plain(value: object) -> object:
    """What json does not know: nested frozen data and read-only maps."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} does not go over the wire")


@functools.cache
def _field_types(cls: type) -> Mapping[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def build(cls: Any, body: object, where: str) -> Any:
    """A frozen dataclass from its JSON object: unknown fields are left out. Raises `WireError`."""
    if not isinstance(body, dict):
        raise WireError(f"{where} is no JSON object")
    values = {
        name: _value(kind, body[name], f"{where}.{name}")
        for name, kind in _field_types(cls).items()
        if name in body
    }
    lacking = [name for name in _required(cls) if name not in values]
    if lacking:
        raise WireError(f"{where} lacks {', '.join(lacking)}")
    return cls(**values)


@functools.cache
def _required(cls: type) -> tuple[str, ...]:
    return tuple(
        field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING
    )


def _value(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        inner = next(arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(get_args(kind)[0], item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _value(get_args(kind)[1], item, where) for key, item in value.items()}
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return build(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and value in [item.value for item in kind]:
        return kind(value)
    raise WireError(f"{where} cannot be {value!r:.60}")
