"""A file is replaced as a whole or stays as it was, and a disk that is full leaves nothing beside it."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.groups.agentuid import agent_uid
from agentd.host.roundfile import ROUND_FILE, RoundFile
from agentd.procs.wholefile import write_whole


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can be longer: of what is written the kernel takes a part, then it refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_content_and_mode_are_as_asked_and_a_reader_keeps_what_it_opened(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(str(file), b"old")
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("rb") as reader:
        write_whole(str(file), b"new", mode=0o644, sync=True)
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o644 & ~_umask()
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_takes_only_a_part_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(str(file), b"old")
    with room_for(10), pytest.raises(OSError, match="File too large"):
        write_whole(str(file), b"much more than there is room for")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_round_file_that_found_no_room_leaves_nothing_beside_it(tmp_path: Path) -> None:
    made = RoundFile(str(tmp_path), run_id="job", incarnation=7, node_id="n")
    made.write(1, 100.0)
    before = (tmp_path / ROUND_FILE).read_bytes()
    with room_for(10):
        made.write(2, 200.0)
    assert (tmp_path / ROUND_FILE).read_bytes() == before
    assert os.listdir(tmp_path) == [ROUND_FILE]


def test_a_uid_that_found_no_room_leaves_nothing(tmp_path: Path) -> None:
    with room_for(10):
        assert agent_uid(tmp_path, "ab" * 16) == "ab" * 16
    assert os.listdir(tmp_path) == []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
