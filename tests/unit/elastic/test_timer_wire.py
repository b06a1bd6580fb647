"""Lines on the timer pipe: valid ones are all read, garbage costs itself and nothing else."""

from __future__ import annotations

import json
import select

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.timer.wire import FileTimerRequest, LineReader, parse

SCOPES = st.text(max_size=40) | st.just('{"version": 1, "pid": 3') | st.just("a\nb") | st.just("\ud800")
REQUESTS = st.builds(
    FileTimerRequest,
    st.integers(1, 1 << 22),
    SCOPES,
    st.floats(allow_nan=False) | st.integers(-5, 1 << 40),
    st.integers(-3, 31),
)
# Without newlines, and no start of a request in it.
GARBAGE = st.binary(min_size=1, max_size=300).map(lambda data: b"x" + data.replace(b"\n", b""))


def line(request: FileTimerRequest) -> bytes:
    return request.to_json().encode() + b"\n"


def in_pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(REQUESTS)
def test_what_is_written_is_read(request: FileTimerRequest) -> None:
    assert parse(request.to_json().encode()) == request


def test_the_wire_is_the_one_of_torch() -> None:
    text = FileTimerRequest(12, "a.py#3", 1.5, 9).to_json()
    assert text == '{"version": 1, "pid": 12, "scope_id": "a.py#3", "expiration_time": 1.5, "signal": 9}'


@given(st.lists(REQUESTS | GARBAGE, max_size=12), st.lists(st.integers(1, 200), max_size=40))
def test_every_valid_line_is_read_whatever_lies_between(
    items: list[FileTimerRequest | bytes], sizes: list[int]
) -> None:
    data = b"".join(item + b"\n" if isinstance(item, bytes) else line(item) for item in items)
    reader = LineReader()
    found = [request for piece in in_pieces(data, sizes) for request in reader.feed(piece)]
    assert found == [item for item in items if not isinstance(item, bytes)]
    assert reader.take_garbage() == sum(isinstance(item, bytes) for item in items)
    assert reader.take_garbage() == 0


@given(REQUESTS, REQUESTS, st.integers(1, 500))
def test_a_request_behind_half_a_line_is_kept(
    lost: FileTimerRequest, kept: FileTimerRequest, length: int
) -> None:
    half = line(lost)[: min(length, len(line(lost)) - 2)]
    reader = LineReader()
    assert reader.feed(half + line(kept)) == [kept]
    assert reader.take_garbage() == 1


def test_ten_megabytes_without_newline_cost_one_line_and_little_memory() -> None:
    reader, request = LineReader(), FileTimerRequest(1, "s", 2.0, 9)
    for _ in range(160):
        assert reader.feed(b"z" * 65536) == []
        assert len(reader._line) <= 2 * select.PIPE_BUF
    assert reader.feed(line(request)) == [request]
    assert reader.take_garbage() == 1


@given(st.binary(max_size=2000))
def test_no_bytes_make_the_reader_raise(data: bytes) -> None:
    reader = LineReader()
    reader.feed(data)
    reader.feed(b"\n")


GOOD = {"version": 1, "pid": 5, "scope_id": "s", "expiration_time": 10.0, "signal": 9}


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 0},
        {"pid": -1},
        {"pid": 1 << 40},
        {"pid": 5.0},
        {"pid": True},
        {"pid": "5"},
        {"pid": None},
        {"scope_id": 3},
        {"scope_id": None},
        {"expiration_time": "soon"},
        {"expiration_time": float("nan")},
        {"expiration_time": 10**400},
        {"expiration_time": False},
        {"signal": 9.0},
        {"signal": 65},
        {"signal": 10**30},
        {"signal": True},
    ],
)
def test_a_wrong_field_makes_a_line_garbage(changes: dict[str, object]) -> None:
    assert parse(json.dumps(GOOD).encode()).signal == 9
    with pytest.raises(ValueError, match=r"is no|pid|int"):
        parse(json.dumps({**GOOD, **changes}).encode())


@pytest.mark.parametrize("name", ["pid", "scope_id", "expiration_time", "signal"])
def test_a_missing_field_makes_a_line_garbage(name: str) -> None:
    fields = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(ValueError, match="is no"):
        parse(json.dumps(fields).encode())


@pytest.mark.parametrize("text", [b"[]", b"3", b"null", b"[" * 4000, b"\xff\xfe", b"{" * 4000, b"9" * 4090])
def test_what_is_no_object_is_garbage(text: bytes) -> None:
    reader = LineReader()
    assert reader.feed(text + b"\n") == []
    assert reader.take_garbage() == 1


def test_version_and_unknown_fields_are_ignored_as_torch_does() -> None:
    assert parse(json.dumps({**GOOD, "version": 7, "more": []}).encode()).worker_pid == 5


def test_empty_lines_are_nothing() -> None:
    reader = LineReader()
    assert reader.feed(b"\n\n  \n") == []
    assert reader.take_garbage() == 0
