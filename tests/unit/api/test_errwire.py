"""An error crosses the wire whole: its type, its code, its sentence, its facts, exactly one ErrorInfo."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from agentd.api import errors, errwire
from agentd.v1 import errors_pb2


class Failed:
    """A failed call, as grpc hands it to a caller."""

    def __init__(
        self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        self._parts = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._parts[2]


def example(kind: Callable[..., errors.AgentError]) -> errors.AgentError:
    parameters = list(inspect.signature(kind).parameters.values())
    return kind(*(7 if p.annotation in ("int", "float") else "x.y" for p in parameters))


@pytest.mark.parametrize("kind", errors.ERRORS.values(), ids=lambda kind: kind.__name__)
def test_an_error_crosses_the_wire_whole(kind: type[errors.AgentError]) -> None:
    error = example(kind)
    status = errwire.to_status(error)
    again = errwire.from_rpc_error(Failed(*status), "node:1")
    assert type(again) is kind
    assert (str(again), again.facts) == (str(error), error.facts)


@pytest.mark.parametrize("kind", errors.ERRORS.values(), ids=lambda kind: kind.__name__)
def test_an_error_has_exactly_one_error_info(kind: type[errors.AgentError]) -> None:
    ((key, value),) = errwire.to_status(example(kind)).trailing_metadata
    status = Status.FromString(value)
    assert key == "grpc-status-details-bin"
    assert [detail.Is(ErrorInfo.DESCRIPTOR) for detail in status.details] == [True]


def test_each_reason_of_the_proto_has_one_type() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()[1:]}
    assert set(errors.ERRORS) == names


def test_a_reason_of_a_newer_peer_keeps_its_sentence_and_facts() -> None:
    status = Status(code=9, message="do this next")
    status.details.add().Pack(ErrorInfo(reason="NEW_ONE", domain="agentd", metadata={"a": "b"}))
    trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    error = errwire.from_rpc_error(Failed(grpc.StatusCode.FAILED_PRECONDITION, "x", trailing), "n")
    assert (str(error), error.facts) == ("do this next", {"a": "b", "reason": "NEW_ONE"})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.NotSupported),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitExceeded),
        (grpc.StatusCode.UNKNOWN, errors.AgentError),
    ],
)
def test_a_failure_that_is_not_ours_becomes_the_nearest_error(
    code: grpc.StatusCode, kind: type[errors.AgentError]
) -> None:
    error = errwire.from_rpc_error(Failed(code, "gone"), "node:1", timeout=2, method="Run")
    assert type(error) is kind
    assert "node:1" in str(error)


@pytest.mark.parametrize(
    ("details", "cause"),
    [
        (
            (
                "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:1: "
                "Failed to connect to remote host: Connection refused"
            ),
            "connection refused",
        ),
        (
            (
                "failed to connect to all addresses; last error: FAILED_PRECONDITION: unix:/a.sock: connect "
                "failed: addr: unix:/a.sock error: No such file or directory"
            ),
            "no such file or directory",
        ),
        (
            (
                "errors resolving x:7460: [field:hostname lookup error:address lookup failed for x:7460: "
                "Domain name not found]"
            ),
            "domain name not found",
        ),
        ("Socket closed", "Socket closed"),
    ],
)
def test_a_node_that_does_not_answer_is_told_without_grpcs_own_story(details: str, cause: str) -> None:
    error = errwire.from_rpc_error(Failed(grpc.StatusCode.UNAVAILABLE, details), "x:1")
    assert str(error).startswith(f"no agentd answers at x:1: {cause}. Start one")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "connection attempt timed out before receiving SETTINGS frame",
            "no agentd answers at x:1: a process there takes connections and says nothing. Look at it: ",
        ),
        (
            "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type 79)",
            "no agentd answers at x:1: what listens there speaks no gRPC. Check the address",
        ),
        (
            "tcp handshaker shutdown",
            "no agentd answers at x:1: connection timed out. See that its machine is up",
        ),
    ],
)
def test_a_silent_peer_is_told_from_one_that_is_not_there(words: str, said: str) -> None:
    details = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: {words}"
    error = errwire.from_rpc_error(Failed(grpc.StatusCode.UNAVAILABLE, details), "x:1")
    assert str(error).startswith(said)


def test_mangled_details_still_give_an_error() -> None:
    trailing = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    error = errwire.from_rpc_error(Failed(grpc.StatusCode.NOT_FOUND, "no such", trailing), "node:1")
    assert "no such" in str(error)


def test_a_huge_sentence_stays_under_the_limit_of_metadata() -> None:
    error = errors.ProgramUnusable("n" * 100_000, "p" * 100_000, "missing")
    status = errwire.to_status(error)
    assert len(status.details.encode()) + len(status.trailing_metadata[0][1]) < 8000
