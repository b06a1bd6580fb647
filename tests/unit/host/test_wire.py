"""The host's wire: frames survive the trip in any pieces, and garbage raises WireError and nothing else."""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.host import wire
from agentd.host.wire import FRAMES, Frame, FrameReader, WireError, decode, encode


def _values(kind: Any) -> st.SearchStrategy[Any]:
    if kind == tuple[int, ...]:
        return st.lists(st.integers(0, 9), max_size=3).map(tuple)
    if kind == tuple[str, ...]:
        return st.lists(st.text(max_size=5), max_size=3).map(tuple)
    if getattr(kind, "__origin__", None) is tuple:
        return st.lists(instances(get_args(kind)[0]), max_size=2).map(tuple)
    if type(None) in get_args(kind):
        return st.none() | _values(get_args(kind)[0])
    if get_args(kind):
        return st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2)
    if kind is float:
        return st.floats(0, 1e9)
    if kind is int:
        return st.integers(0, 2**31 - 1)
    if kind in (str, bool):
        return st.from_type(kind)
    return instances(kind)


def instances(cls: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    return st.builds(cls, **{field.name: _values(hints[field.name]) for field in fields(cls)})


frames = st.one_of([instances(cls) for cls in FRAMES.values()])


@given(sent=st.lists(frames, max_size=4), cut=st.integers(1, 40))
def test_frames_arrive_whole_in_whatever_pieces(sent: list[Frame], cut: int) -> None:
    stream = b"".join(encode(frame) for frame in sent)
    reader = FrameReader()
    received = [
        frame for start in range(0, len(stream), cut) for frame in reader.feed(stream[start : start + cut])
    ]
    assert received == sent


@given(payload=st.binary(max_size=200))
def test_garbage_is_a_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(frame=frames, data=st.data())
def test_a_field_of_another_type_is_a_wire_error_or_a_frame(frame: Frame, data: st.DataObject) -> None:
    body = json.loads(encode(frame)[4:])
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(json_values)
    try:
        decoded = decode(json.dumps(body).encode())
    except WireError:
        return
    assert type(decoded) in FRAMES.values()


def test_what_a_newer_version_adds_is_ignored() -> None:
    body = json.loads(wire.as_json(wire.StopRound(round=2, reason="x"))) | {"colour": "green"}
    assert decode(json.dumps(body).encode()) == wire.StopRound(round=2, reason="x")


def test_what_an_older_version_lacks_has_its_default() -> None:
    payload = json.dumps({"version": 1, "type": "finish", "state": "stopped"}).encode()
    assert decode(payload) == wire.FinishHost(state="stopped")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"version": 99, "type": "done", "round": 1}, "version 99"),
        ({"version": "1", "type": "danse"}, "danse"),
        ({"version": 1, "type": ["done"]}, "a list"),
        ({"version": 1, "type": "stop_round"}, "lacks round"),
        ({"version": 1, "type": "done", "round": "1"}, "done.round"),
        ({"version": 1, "type": "done", "round": True}, "done.round"),
        ({"version": 1, "type": "started", "round": 1, "workers": [{"pid": 3}]}, "started.workers lacks"),
    ],
)
def test_a_wrong_frame_says_what_is_wrong(body: object, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode(json.dumps(body).encode())


def test_an_announced_length_over_the_limit_is_refused_before_it_comes() -> None:
    with pytest.raises(WireError, match="limit"):
        list(FrameReader().feed(struct.pack(">I", wire.MAX_FRAME + 1)))


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(WireError, match="limit"):
        encode(wire.Ended(state="failed", reason="x" * wire.MAX_FRAME))


def test_frames_of_a_newer_version_are_left_out_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    strange = b'{"version":3,"type":"dance","steps":[1,2]}'
    later = b'{"version":3,"type":"done","round":"seven"}'
    known = wire.StopRound(round=2)
    stream = b"".join(struct.pack(">I", len(body)) + body for body in (strange, strange, later)) + encode(
        known
    )
    assert list(FrameReader().feed(stream)) == [known]
    assert len(caplog.messages) == 2
    assert "'dance' and the version 3" in caplog.messages[0]


def test_greetings_are_read_whatever_their_version() -> None:
    refused = {"version": 7, "type": "refused", "reason": "too old", "since": 7}
    assert decode(json.dumps(refused).encode()) == wire.Refused(reason="too old")


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [(1, 1, 1), (2, 1, 2), (3, 2, 2), (3, 3, None), (0, 0, None)],
)
def test_neighbours_agree_on_what_both_speak(newest: int, oldest: int, spoken: int | None) -> None:
    assert (wire.VERSION, wire.OLDEST) == (2, 1)
    if spoken is None:
        with pytest.raises(wire.NoCommonVersion, match=f"{oldest} to {newest}.*1 to 2"):
            wire.agree(newest, oldest)
    else:
        assert wire.agree(newest, oldest) == spoken
