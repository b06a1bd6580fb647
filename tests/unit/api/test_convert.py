"""Every value survives the wire; a message that cannot be read names its field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.api import convert, types
from agentd.api.errors import InvalidSpec
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import run_pb2 as run

text = st.text(st.characters(codec="utf-8"), max_size=20)
number = st.integers(0, 2**31 - 1)
seconds = st.integers(0, 10**9).map(lambda millis: millis / 1000)
optional_seconds = st.none() | seconds
mapping = st.dictionaries(text, text, max_size=3)
sizes = st.integers(0, 5000) | st.sampled_from(types.LocalWorldSizeRule)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "str": text,
    "int": number,
    "float": seconds,
    "bool": st.booleans(),
    "bytes": st.binary(max_size=50),
    "int | None": st.none() | number,
    "float | None": optional_seconds,
    "tuple[str, ...]": st.lists(text, max_size=3).map(tuple),
    "tuple[int, ...]": st.lists(number, max_size=3).map(tuple),
    "Mapping[str, str]": mapping,
    "LocalWorldSize": sizes,
    "Mapping[str, LocalWorldSize]": st.dictionaries(text, sizes, max_size=3),
}


NODES_OWN = {(types.Drain, "asked_at")}
"""What a node keeps to itself."""


def values(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any value of a dataclass of `types`, with every field varied that others see."""
    fields = {
        field.name: _of(str(field.type))
        for field in dataclasses.fields(kind)
        if (kind, field.name) not in NODES_OWN
    }
    if "role" in fields:
        fields["role"] = text.filter(bool)
    return st.builds(kind, **fields)


def _of(annotation: str) -> st.SearchStrategy[Any]:
    if annotation in FIELDS:
        return FIELDS[annotation]
    if annotation.startswith("tuple["):
        return st.lists(_of(annotation[6:-6]), max_size=2).map(tuple)
    if annotation.endswith(" | None"):
        return st.none() | _of(annotation.removesuffix(" | None"))
    kind = getattr(types, annotation)
    return (
        values(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else st.sampled_from(kind)
    )


PAIRS: dict[type[Any], tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    types.RunSpec: (convert.run_spec_to_message, convert.run_spec_from_message),
    types.RunStatus: (convert.run_status_to_message, convert.run_status_from_message),
    types.Failure: (convert.failure_to_message, convert.failure_from_message),
    types.RunRequest: (convert.run_request_to_message, convert.run_request_from_message),
    types.StopRequest: (convert.stop_request_to_message, convert.stop_request_from_message),
    types.LogsRequest: (convert.logs_request_to_message, convert.logs_request_from_message),
    types.LogChunk: (convert.log_chunk_to_message, convert.log_chunk_from_message),
    types.NodeInfo: (convert.node_info_to_message, convert.node_info_from_message),
    types.StreamEnd: (convert.stream_end_to_message, convert.stream_end_from_message),
}


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
def test_every_value_survives_the_wire(kind: type[Any]) -> None:
    to_message, from_message = PAIRS[kind]

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(values(kind))
    def survives(value: Any) -> None:
        message = to_message(value)
        again = type(message).FromString(message.SerializeToString())
        assert from_message(again) == value

    survives()


@pytest.mark.parametrize(
    ("python", "proto"),
    [
        (types.Phase, run.Phase),
        (types.WorkerState, run.WorkerState),
        (types.EntrypointKind, run.EntrypointKind),
        (types.LocalWorldSizeRule, run.LocalWorldSizeRule),
        (types.StopScope, service.StopScope),
        (types.LogStream, service.LogStream),
        (types.StreamEndCause, service.StreamEndCause),
    ],
    ids=lambda enum: getattr(enum, "__name__", "proto"),
)
def test_each_enum_has_the_members_of_its_proto(python: Any, proto: Any) -> None:
    prefix = proto.keys()[0].removesuffix("UNSPECIFIED")
    assert {prefix + member.name for member in python} == set(proto.keys()[1:])


def test_a_choice_of_a_newer_peer_is_refused_by_name() -> None:
    message = service.StopRequest(run_id="a", scope=99)  # type: ignore[arg-type]
    with pytest.raises(InvalidSpec, match="scope: value 99 is not known to this version"):
        convert.stop_request_from_message(message)


def test_a_phase_of_a_newer_peer_is_lost_and_none_is_pending() -> None:
    assert convert.run_status_from_message(run.RunStatus(phase=99)).phase is types.Phase.LOST  # type: ignore[arg-type]
    assert convert.run_status_from_message(run.RunStatus()).phase is types.Phase.PENDING


@pytest.mark.parametrize(("whole", "nanos"), [(-1, 0), (0, -1), (2**60, 0), (1, 2_000_000_000)])
def test_a_duration_out_of_range_names_its_field(whole: int, nanos: int) -> None:
    message = run.RunSpec(run_id="a")
    message.stop_grace.seconds = whole
    message.stop_grace.nanos = nanos
    with pytest.raises(InvalidSpec, match="stop_grace"):
        convert.run_spec_from_message(message)


def test_fields_of_a_newer_peer_are_ignored() -> None:
    known = run.RunSpec(run_id="a").SerializeToString()
    unknown_field_1000 = b"\xc2\x3e\x03new"
    assert convert.run_spec_from_message(run.RunSpec.FromString(known + unknown_field_1000)).run_id == "a"
