"""Host frames: whatever arrives is frames, or a `WireError`; in any pieces it is the same."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from agentd.api.convert import run_status_to_message
from agentd.api.types import Failure, NodeStatus, RunStatus
from agentd.host import wire
from agentd.host.wire import FRAMES, FrameReader, WireError, as_json, decode
from tests.unit.fuzz.hostile import DEEP, examples, json_of, nested
from tests.unit.host.test_wire import frames

bodies: st.SearchStrategy[dict[str, Any]] = frames.map(lambda frame: json.loads(as_json(frame)))
payloads = json_of(bodies)


@examples(25)
@given(payload=payloads)
def test_a_payload_is_a_frame_or_a_wire_error(payload: bytes) -> None:
    try:
        frame = decode(payload)
    except WireError:
        return
    assert type(frame) in FRAMES.values()
    # It can be sent on and comes back as it is.
    assert decode(as_json(frame)) == frame


@examples(25)
@given(stream=st.lists(payloads | st.binary(max_size=30), max_size=4), cut=st.integers(1, 60))
def test_a_stream_in_pieces_gives_what_it_gives_as_a_whole(stream: list[bytes], cut: int) -> None:
    data = b"".join(struct.pack(">I", len(payload)) + payload for payload in stream)
    whole, pieces = _read([data]), _read([data[at : at + cut] for at in range(0, len(data), cut)])
    assert whole == pieces


def _read(pieces: list[bytes]) -> tuple[list[wire.Frame], bool]:
    """The frames, and whether the stream was broken after them."""
    reader, found = FrameReader(), []
    try:
        for piece in pieces:
            # One by one: those before the break count.
            for frame in reader.feed(piece):
                found += [frame]
    except WireError:
        return found, True
    return found, False


@examples(50)
@given(data=st.binary(max_size=64))
def test_any_bytes_are_a_stream_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        list(FrameReader().feed(data))


def test_nesting_of_any_depth_is_a_wire_error_or_left_out() -> None:
    for depth in DEEP:
        deep = nested(depth)
        for body in (
            b'{"version":1,"type":' + deep + b"}",
            b'{"version":1,"type":"stop_round","round":' + deep + b"}",
            b'{"version":1,"type":"done","round":1,"more":' + deep + b"}",
        ):
            with contextlib.suppress(WireError):
                assert decode(body) == wire.Done(round=1)


@examples(25)
@given(payload=payloads)
@example(payload=b'{"version":1,"type":"failed","round":1,"failures":[{"rank":0,"local_rank":0,"pid":1,'
         b'"message":"a\\udcffb","time":1e300}]}')  # fmt: skip
def test_what_a_host_reports_can_be_shown(payload: bytes) -> None:
    """A failure goes on to status, over another wire that is stricter."""
    try:
        frame = decode(payload)
    except WireError:
        return
    if not isinstance(frame, wire.Failed):
        return
    for worker in frame.failures:
        failure = Failure(
            node_id="n",
            rank=worker.rank,
            local_rank=worker.local_rank,
            pid=worker.pid,
            exit_code=worker.exit_code,
            signal=worker.signal,
            message=worker.message,
            stderr_tail=worker.stderr_tail,
            time=worker.time,
            error_file=worker.error_file,
            log_dir=worker.log_dir,
        )
        status = RunStatus(run_id="r", incarnation=1, first_failure=failure, nodes=(NodeStatus(node_id="n"),))
        run_status_to_message(status).SerializeToString()
