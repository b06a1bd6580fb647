"""What a host and its agentd say to each other: length-prefixed JSON frames on a Unix stream socket.

Host and agentd may be of neighbouring versions: a run outlives the upgrade of its agentd, and its way back.
Fields and frames that a newer one adds are ignored, and what an older one lacks has its default; what is
there must have its type. Anything else is a `WireError`, never another exception.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator, Mapping
from typing import ClassVar, TypeAlias

from agentd.core.assignment import Assignment
from agentd.core.contact import Contact
from agentd.host.shaped import ShapeError, body_of, build, plain, shown
from agentd.host.sound import sound
from agentd.quickdata import dataclass

VERSION = 2
"""What is spoken here. It grows when a kind of frame is added, and when one changes its meaning."""
OLDEST = 1
"""What is understood here, too: an upgrade goes from one version to the next, and may go back."""
MAX_FRAME = 16 * 1024 * 1024

_LENGTH = struct.Struct(">I")
_NAMED = 16
"""As many unknown frames of one stream are logged."""
_log = logging.getLogger(__name__)


class WireError(Exception):
    """The other side does not speak this protocol, or speaks it wrongly."""


class UnknownFrame(WireError):
    """A frame that only a newer version understands: it can be left out."""


class NoCommonVersion(WireError):
    """Host and agentd are too far apart."""

    def __init__(self, newest: int, oldest: int) -> None:
        where = "older" if newest < OLDEST else "newer"
        super().__init__(
            f"the host speaks versions {oldest} to {newest} of the host protocol, this agentd {OLDEST} to "
            f"{VERSION}; the host's agentd was too much {where}: stop its runs first, or go from one version "
            "of agentd to the next"
        )


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
    cgroup: str = ""
    """The folder of the group's own cgroup, the host in it; empty: there is none."""
    on_isolation: str = "keep"
    """What becomes of the workers when the contact with the hub has run out: `keep` or `stop`."""
    preload: tuple[str, ...] = ()
    """Modules that workers find imported; an older host leaves them to do it by themselves."""
    standby: bool = False
    """The next round's workers wait, forked already."""


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
    protocol: int = 1
    """The newest version that the host speaks."""
    oldest_protocol: int = 1
    """The oldest version that it still understands."""


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
    preload_problem: str = ""
    """Why not all of them were forked as `preload` wishes."""
    restart_count: int = 0
    """As the round's place said. 0 also from an older host, which did not tell."""


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
class Isolated(Report):
    """The contact with the hub has run out, and the host stops the round's workers by itself."""

    type: ClassVar[str] = "isolated"
    round: int
    reason: str


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
    protocol: int = 1
    """The newest version that agentd speaks."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class HubContact:
    """The hub has answered, or wants a round gone: how long each round may act. The newest one counts."""

    type: ClassVar[str] = "hub_contact"
    contact: Contact


ReportFrame: TypeAlias = Ready | Started | Exited | Failed | Done | Unkillable | Isolated | Recorded | Ended
HostFrame: TypeAlias = Hello | ReportFrame
AgentFrame: TypeAlias = Welcome | Refused | Assigned | StopRound | FinishHost | SignalWorkers | HubContact
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
        Isolated,
        Recorded,
        Ended,
        Welcome,
        Refused,
        Assigned,
        StopRound,
        FinishHost,
        SignalWorkers,
        HubContact,
    )
}


SINCE: Mapping[str, int] = {Isolated.type: 2, HubContact.type: 2}
"""The version that brought a kind of frame; those that are not here are of the first."""

_GREETINGS = (Hello.type, Refused.type)
"""Read whatever their version: by these, two that are too far apart tell each other so."""


def since(frame: Frame) -> int:
    """The version that the other side must speak to understand this frame."""
    return SINCE.get(frame.type, 1)


def agree(newest: int, oldest: int) -> int:
    """The version to speak with one that speaks these. Raises `NoCommonVersion`."""
    common = min(newest, VERSION)
    if common < max(oldest, OLDEST):
        raise NoCommonVersion(newest, oldest)
    return common


def encode(frame: Frame) -> bytes:
    """The frame as it goes over the socket."""
    payload = as_json(frame)
    if len(payload) > MAX_FRAME:
        raise WireError(f"a {frame.type} frame of {len(payload)} bytes is over the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(payload)) + payload


def as_json(frame: Frame) -> bytes:
    """The frame's object, as it also stands in host.jsonl; one line."""
    tagged = {"version": since(frame), "type": frame.type, **body_of(frame)}
    return json.dumps(tagged, separators=(",", ":"), default=plain).encode()


def decode(payload: bytes) -> Frame:
    """The frame of one payload. Raises `UnknownFrame` for one of a newer version, else `WireError`."""
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise WireError("a frame is no JSON object")
    kind, version = body.get("type"), body.get("version")
    if type(version) is not int or version < 1 or not isinstance(kind, str):
        raise WireError(f"no frame has the type {shown(kind)} and the version {shown(version)}")
    cls = FRAMES.get(kind)
    if cls is None or (version > VERSION and kind not in _GREETINGS):
        raise UnknownFrame(
            f"a frame of the type {shown(kind)} and the version {shown(version)} is not known here, where "
            f"version {VERSION} is spoken"
        )
    try:
        frame: Frame = build(cls, body, cls.type)
        # What agentd says is not mended: environments hold whatever bytes their users like.
        return frame if isinstance(frame, AgentFrame) else sound(frame, frame.type)
    except ShapeError as error:
        raise WireError(str(error)) from None


class FrameReader:
    """Cuts a byte stream into frames. Frames of a newer version are left out, with one line in the log."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._unknown: set[str] = set()

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
            try:
                frame = decode(payload)
            except UnknownFrame as error:
                self._leave_out(str(error))
            else:
                yield frame

    def _leave_out(self, problem: str) -> None:
        if problem not in self._unknown and len(self._unknown) < _NAMED:
            self._unknown.add(problem)
            _log.warning("%s; it is left out", problem)
