"""Errors to gRPC status and back, without loss: code, sentence, and one google.rpc.ErrorInfo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from agentd.api.errors import (
    ERRORS,
    AgentError,
    Code,
    DeadlineExceeded,
    LimitExceeded,
    NotSupported,
    Unreachable,
)

DOMAIN: Final = "agentd"
DETAILS_KEY: Final = "grpc-status-details-bin"
FACT_LIMIT: Final = 512
"""Characters of one fact, and four times that of a sentence: a call's metadata stays under about 8 KiB."""

_STATUS_CODES: Final[Mapping[Code, grpc.StatusCode]] = {
    code: next(status for status in grpc.StatusCode if status.value[0] == code.value) for code in Code
}


class WireStatus(NamedTuple):
    """What a servicer ends a call with."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


class RpcFailure(Protocol):
    """The part of `grpc.RpcError` and `grpc.aio.AioRpcError` that is read here."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def to_status(error: AgentError) -> WireStatus:
    """The status of an error."""
    sentence = _clipped(error.sentence, 4 * FACT_LIMIT)
    status = Status(code=error.code.value, message=sentence)
    facts = {key: _clipped(value, FACT_LIMIT) for key, value in error.facts.items()}
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts))
    return WireStatus(_STATUS_CODES[error.code], sentence, ((DETAILS_KEY, status.SerializeToString()),))


def from_rpc_error(failure: RpcFailure, target: str, *, timeout: float = 0.0, method: str = "") -> AgentError:
    """The error behind a failed call to `target`; without an ErrorInfo of ours, the nearest there is.

    `timeout` is the deadline the call had, in seconds, and `method` its name; both serve the sentence only.
    """
    info, sentence = _error_info(failure)
    details = sentence or failure.details() or ""
    if info is not None:
        kind = ERRORS.get(info.reason)
        if kind is not None:
            return kind.from_wire(details, info.metadata)
        return AgentError(details, {**info.metadata, "reason": info.reason})
    code = failure.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(target, timeout)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return NotSupported(method or "this call", f"at {target}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return LimitExceeded(f"a message to or from {target} ({details})", "4 MiB")
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unreachable(target, details)
    return AgentError(f"{target}: {code.name.lower().replace('_', ' ')}: {details}", {"target": target})


def _error_info(failure: RpcFailure) -> tuple[ErrorInfo | None, str]:
    for key, value in failure.trailing_metadata() or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = Status.FromString(value)
            for detail in status.details:
                info = ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info, status.message
        except DecodeError:
            # A proxy in between may have mangled it: code and details still stand.
            return None, ""
    return None, ""


_CAUSE = re.compile(
    r"(?:Failed to connect to remote host|connect failed: addr: \S+ error|address lookup failed for \S+): "
    r"([^;\]]+)"
)


_STRANGE_PEERS: Final = {
    "before receiving SETTINGS frame": (
        "a process there takes connections and says nothing",
        "Look at it: it is another program, or an agentd that hangs and may be killed and started again.",
    ),
    "Failed parsing HTTP/2": ("what listens there speaks no gRPC", "Check the address and the port."),
    "tcp handshaker shutdown": ("connection timed out", "See that its machine is up and can be reached."),
}
"""gRPC's words for a peer that neither refuses nor answers: what they mean, and the next step."""


def _unreachable(target: str, details: str) -> Unreachable:
    """What kept a connection from being made, without gRPC's own story around it."""
    for words, (problem, next_step) in _STRANGE_PEERS.items():
        if words in details:
            return Unreachable(target, problem, next_step)
    found = _CAUSE.search(details)
    return Unreachable(target, found[1].strip().lower() if found else details)


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
