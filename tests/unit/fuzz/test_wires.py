"""Bytes on other sockets: the store's frames, health checks over HTTP; and what /proc says of cgroups."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentd.elastic.agent.server.health import answers
from agentd.elastic.agent.server.health_check_server import Liveness
from agentd.elastic.utils import store_wire
from agentd.procs import cgroups
from tests.unit.fuzz.hostile import examples, flipped

requests = st.lists(st.binary(max_size=12), max_size=5).map(store_wire.pack)


@examples(50)
@given(frame=st.binary(max_size=40) | requests.flatmap(flipped))
def test_a_frame_of_the_store_is_fields_or_a_bad_frame(frame: bytes) -> None:
    with contextlib.suppress(store_wire.BadFrame):
        size = store_wire.frame_size(frame)
        assert size is None or size >= 4
        store_wire.unpack(frame)


@examples(25)
@given(fields=st.lists(st.binary(max_size=12), max_size=5))
def test_a_frame_of_the_store_comes_back_as_it_was(fields: list[bytes]) -> None:
    frame = store_wire.pack(fields)
    assert store_wire.frame_size(frame) == len(frame)
    assert store_wire.unpack(frame) == fields


LINES = [
    b"GET / HTTP/1.1",
    b"HEAD /x HTTP/1.0",
    b"POST / HTTP/1.1",
    b"Host: x",
    b"",
    b"\xff\xfe",
    b"PRI * HTTP/2.0",
]


@examples(50)
@given(
    data=st.lists(st.sampled_from(LINES) | st.binary(max_size=20), max_size=6).map(b"\r\n".join)
    | st.binary(max_size=60)
)
def test_a_health_check_is_answered_whatever_it_asks(data: bytes) -> None:
    for end in range(0, len(data) + 1, 5):
        answer = answers.answer_to(data[:end], lambda: Liveness(alive=True, age=1.0, text="well"))
        assert answer is None or answer.startswith(b"HTTP/1.1 ")


text = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20)
mounts = st.sampled_from(
    [
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "30 23 0:26 /.. /tmp rw - cgroup2 x",
        "a b c - cgroup2 x",
        "- cgroup2 x",
    ]
)
places = st.sampled_from(["0::/", "0::", "0::/../..", "0::/a b", "1:name=x:/", "0::\0"])


@examples(25)
@given(mounted=st.lists(mounts | text, max_size=3), own=st.lists(places | text, max_size=2))
@example(mounted=["30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"], own=[])
def test_the_cgroup_of_a_process_is_a_folder_or_none(mounted: list[str], own: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        process = Path(folder, "self")
        process.mkdir()
        (process / "mountinfo").write_text("\n".join(mounted), encoding="utf-8")
        (process / "cgroup").write_text("\n".join(own), encoding="utf-8")
        patch.setattr(cgroups, "PROC", folder)
        found = cgroups.folder_of("self")
        assert found is None or found.is_dir()
