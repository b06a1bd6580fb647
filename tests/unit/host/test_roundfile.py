"""The round file is whole or absent, and a disk that fails harms nobody but who asks it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from agentd.host.roundfile import ROUND_FILE, RoundFile


def made(folder: Path) -> RoundFile:
    return RoundFile(str(folder), run_id="job", incarnation=7, node_id="n1")


def test_it_says_which_round_may_act_until_when(tmp_path: Path) -> None:
    made(tmp_path).write(3, 24966.58)
    told = (tmp_path / ROUND_FILE).read_text()
    assert told == (
        '{"run_id": "job", "incarnation": 7, "round": 3, "valid_until": 24966.58, "node_id": "n1"}\n'
    )


def test_a_reader_that_has_it_open_keeps_a_whole_file(tmp_path: Path) -> None:
    file = made(tmp_path)
    file.write(1, 100.0)
    with (tmp_path / ROUND_FILE).open() as reader:
        file.write(2, 200.0)
        assert json.loads(reader.read())["round"] == 1
    assert json.loads((tmp_path / ROUND_FILE).read_text())["round"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [ROUND_FILE]


def test_what_an_earlier_host_left_is_gone_and_so_is_what_was_removed(tmp_path: Path) -> None:
    made(tmp_path).write(3, 9e9)
    file = made(tmp_path)
    assert not (tmp_path / ROUND_FILE).exists()
    file.write(4, 9e9)
    file.remove()
    file.remove()
    assert not (tmp_path / ROUND_FILE).exists()


def test_a_failing_disk_is_named_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = made(tmp_path)
    file.write(1, 100.0)
    (tmp_path / f"{ROUND_FILE}.new").mkdir()
    with caplog.at_level(logging.ERROR):
        for until in (101.0, 102.0, 103.0):
            file.write(1, until)
    assert len(caplog.records) == 1
    assert json.loads((tmp_path / ROUND_FILE).read_text())["valid_until"] == 100.0
    (tmp_path / f"{ROUND_FILE}.new").rmdir()
    file.write(1, 103.0)
    assert json.loads((tmp_path / ROUND_FILE).read_text())["valid_until"] == 103.0
