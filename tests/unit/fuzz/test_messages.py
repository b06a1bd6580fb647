"""What comes over the network: messages of any content, and of bytes that nearly are messages."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given
from hypothesis import strategies as st

from agentd.api import convert, errwire, historywire
from agentd.api.errors import AgentError, RunConflict
from agentd.core.specs import differing_fields, validate
from agentd.groups.admission import Machine, plan_node
from agentd.groups.logcursor import Selection, WorkerLog
from agentd.hub import codec
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import rendezvous_service_pb2 as rendezvous
from agentd.v1 import run_pb2 as run
from tests.unit.fuzz.hostile import examples, flipped

strings = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(
        [
            "\0",
            "a\0b",
            "/",
            "..",
            "a/b",
            "x" * 300,
            "unix:/x",
            "[::1]:0",
            "${local_rank}",
            "a=b",
            "sh",
            "/bin/sh",
        ]
    ),
)
_INTEGERS = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}


def messages(kind: type[Message], depth: int = 3) -> st.SearchStrategy[Any]:
    """Messages of a type with any content that protobuf takes."""
    fields = {field.name: _field(field, depth) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: _filled(kind, values))


def _filled(kind: type[Message], values: dict[str, Any]) -> Message:
    message = kind()
    for name, value in values.items():
        field, target = kind.DESCRIPTOR.fields_by_name[name], getattr(message, name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, item in value.items():
                if isinstance(item, Message):
                    target[key].CopyFrom(item)
                else:
                    target[key] = item
        elif isinstance(value, list):
            target.extend(value)
        elif isinstance(value, Message):
            target.CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _field(field: Any, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return st.dictionaries(_one(key, depth), _one(value, depth), max_size=2)
    one = _one(field, depth)
    return st.lists(one, max_size=2) if _repeated(field) else one


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _one(field: Any, depth: int) -> st.SearchStrategy[Any]:
    kinds = {getattr(field, f"TYPE_{name.upper()}"): bounds for name, bounds in _INTEGERS.items()}
    if field.type in kinds:
        low, high = kinds[field.type]
        return st.sampled_from([0, 1, 3, low, high]) | st.integers(low, high)
    if field.type == field.TYPE_MESSAGE:
        kind = field.message_type._concrete_class
        return messages(kind, depth - 1) if depth else st.just(kind())
    if field.type == field.TYPE_ENUM:
        return st.sampled_from([0, 1, 2, 99, -1])
    if field.type == field.TYPE_BOOL:
        return st.booleans()
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
        return st.floats()
    if field.type == field.TYPE_BYTES:
        return st.binary(max_size=8)
    assert field.type == field.TYPE_STRING, field.type
    return strings


good = run.RunSpec(
    run_id="r",
    nodes=["a", "b"],
    roles=[run.RoleSpec(command=run.Command(entrypoint="/bin/sh", kind=run.ENTRYPOINT_KIND_EXECUTABLE))],
)


@st.composite
def specs(draw: st.DrawFn) -> run.RunSpec:
    """A good spec with some of its fields exchanged."""
    message = run.RunSpec()
    message.CopyFrom(good)
    message.MergeFrom(draw(messages(run.RunSpec, 2)))
    if draw(st.booleans()):
        message.run_id = "r"
        del message.roles[1:]
        message.roles[0].MergeFrom(draw(messages(run.RoleSpec, 2)))
        message.roles[0].command.entrypoint = draw(strings)
    return message


@examples(35)
@given(message=specs(), passed=st.dictionaries(strings, strings, max_size=2), name=strings)
def test_a_run_is_planned_or_refused_by_name(message: run.RunSpec, passed: dict[str, str], name: str) -> None:
    machine = Machine(node_id="a", environ={"PATH": "/bin"}, home="/", worker_limit=64)
    with contextlib.suppress(AgentError):
        spec = convert.run_spec_from_message(message)
        validate(spec)
        assert not differing_fields(spec, convert.run_spec_from_message(convert.run_spec_to_message(spec)))
        plan_node(spec, "a", passed, machine)
        plan_node(spec, name, {}, machine)


@examples(25)
@given(message=messages(run.RunStatus, 3))
def test_a_status_is_read_and_shown_again(message: run.RunStatus) -> None:
    with contextlib.suppress(AgentError):
        status = convert.run_status_from_message(message)
        again = convert.run_status_to_message(status)
        assert convert.run_status_from_message(again) == convert.run_status_from_message(
            run.RunStatus.FromString(again.SerializeToString())
        )


@examples(35)
@given(message=messages(rendezvous.JoinRequest, 2))
def test_what_a_node_says_to_a_hub_is_understood_or_refused(message: rendezvous.JoinRequest) -> None:
    for read in (codec.hello_from_message, codec.request_from_message):
        with contextlib.suppress(AgentError):
            read(message)


@examples(35)
@given(message=messages(rendezvous.JoinResponse, 2))
def test_what_a_hub_says_to_a_node_is_understood_or_refused(message: rendezvous.JoinResponse) -> None:
    with contextlib.suppress(AgentError):
        codec.response_from_message(message)


@examples(25)
@given(content=specs().flatmap(lambda message: flipped(message.SerializeToString())))
def test_bytes_that_nearly_are_a_spec_are_one_or_none(content: bytes) -> None:
    with contextlib.suppress(AgentError, DecodeError):
        validate(convert.run_spec_from_message(run.RunSpec.FromString(content)))


LOGS = [WorkerLog(role="default", round=round_, local_rank=0, rank=0, directory="/x") for round_ in (1, 2)]


@examples(50)
@given(message=messages(service.LogsRequest, 2))
def test_a_wish_for_logs_is_understood_or_refused(message: service.LogsRequest) -> None:
    with contextlib.suppress(AgentError):
        selection = Selection.begin(convert.logs_request_from_message(message), LOGS)
        for log, stream in selection.of(LOGS):
            at = selection.resumed_at(log, stream)
            assert at is None or at >= 0


@examples(35)
@given(
    stop=messages(service.StopRequest, 2),
    drain=messages(service.DrainRequest, 2),
    run_=messages(service.RunRequest, 3),
)
def test_other_wishes_are_understood_or_refused(
    stop: service.StopRequest, drain: service.DrainRequest, run_: service.RunRequest
) -> None:
    with contextlib.suppress(AgentError):
        convert.stop_request_from_message(stop)
    with contextlib.suppress(AgentError):
        convert.drain_request_from_message(drain)
    with contextlib.suppress(AgentError):
        convert.run_request_from_message(run_)


class Failure:
    """A failed call, as gRPC gives it."""

    def __init__(self, details: bytes | str) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.ALREADY_EXISTS

    def details(self) -> str:
        return "what it says"

    def trailing_metadata(self) -> list[tuple[str, str | bytes]]:
        return [(errwire.DETAILS_KEY, self._details)]


known = errwire.to_status(RunConflict("r", ["nodes"])).trailing_metadata[0][1]


@examples(35)
@given(details=st.binary(max_size=40) | flipped(known) | strings)
@example(details=known)
def test_the_error_of_a_call_is_an_error_whatever_came_with_it(details: bytes | str) -> None:
    error = errwire.from_rpc_error(Failure(details), "a:1")
    assert isinstance(error, AgentError)
    assert str(error)


@examples(25)
@given(message=messages(service.ListEventsRequest, 1))
def test_a_question_for_events_is_answered_or_refused(message: service.ListEventsRequest) -> None:
    import asyncio

    from agentd.groups.archive import Archive
    from agentd.groups.journal import Journal

    async def asked(folder: str) -> None:
        journal = Journal(Path(folder, "agentd.db"))
        await journal.start()
        await journal.close()
        archive = Archive(Path(folder, "agentd.db"), "n")
        try:
            with contextlib.suppress(AgentError):
                await archive.events(historywire.events_request_from_message(message))
        finally:
            archive.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(asked(folder))
