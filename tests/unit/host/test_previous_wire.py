"""Each frame that two versions have is read by the other as it was meant; the older one is its real code."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentd.host import wire
from tests.support.hosts import PREVIOUS, wire_of
from tests.unit.host.test_wire import frames, instances

old: Any = wire_of(PREVIOUS)


def test_the_kept_host_is_of_the_version_before() -> None:
    assert old.VERSION == wire.VERSION - 1 == wire.OLDEST


def test_no_kind_of_frame_was_taken_away() -> None:
    assert set(old.FRAMES) <= set(wire.FRAMES)
    assert set(wire.FRAMES) - set(old.FRAMES) == {kind for kind in wire.SINCE if wire.SINCE[kind] > 1}


@given(frame=st.one_of([instances(cls) for cls in old.FRAMES.values()]))
def test_what_the_previous_version_says_is_understood(frame: Any) -> None:
    read = wire.decode(old.as_json(frame))
    assert read.type == frame.type
    assert _known_to(frame, asdict(read)) == asdict(frame)


@given(frame=frames.filter(lambda frame: wire.since(frame) == 1))
def test_the_previous_version_understands_what_it_is_sent(frame: wire.Frame) -> None:
    read = old.decode(wire.as_json(frame))
    assert read.type == frame.type
    assert asdict(read) == _known_to(read, asdict(frame))


def _known_to(frame: Any, body: Any) -> Any:
    """Of a frame's fields those that `frame`, of the previous version, has."""
    return _cut(asdict(frame), body)


def _cut(shape: Any, body: Any) -> Any:
    if isinstance(shape, dict) and isinstance(body, dict) and set(shape) <= set(body):
        return {name: _cut(value, body[name]) for name, value in shape.items()}
    if isinstance(shape, tuple) and isinstance(body, tuple) and len(shape) == len(body):
        return tuple(map(_cut, shape, body))
    return body
