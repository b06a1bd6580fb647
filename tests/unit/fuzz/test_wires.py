"""Bytes on other sockets: the store's frames, health checks over HTTP; and what /proc says of cgroups."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

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


@examples(25)
@given(lines=st.lists(mounts | text, max_size=3))
@example(lines=["30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"])
def test_the_cgroup_of_a_process_is_a_folder_or_none(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mountinfo = Path(folder, "mountinfo")
        mountinfo.write_text("\n".join(lines), encoding="utf-8")
        for pid in ("self", 2**22 + 1):  # the second is no process
            found = cgroups.folder_of(pid, str(mountinfo))
            assert found is None or found.is_dir()
