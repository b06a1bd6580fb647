"""What a disk does not take is kept, in order, until it does; nothing is written twice or in half."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentd.host import reports
from agentd.host.reports import FILE_NAME, ReportLog, read_reports
from agentd.host.wire import Done, Ended, Recorded, as_json

LINE = len(as_json(Done(round=1, sequence=1, time=1_700_000_000.123456)))


class Disk:
    """Takes so many bytes more, as a file system that is nearly full does."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write = os.write

    def write(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self._write(fd, data[: self.room])
        self.room -= taken
        return taken


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk(1 << 30)
    monkeypatch.setattr("os.write", found.write)
    return found


def rounds(folder: Path) -> list[int]:
    return [report.round for report in read_reports(str(folder), 0) if isinstance(report, Done)]


@pytest.mark.parametrize("room", [0, 1, LINE - 1, LINE + 5, 2 * LINE])
def test_reports_wait_for_a_full_disk_in_order(tmp_path: Path, disk: Disk, room: int) -> None:
    log = ReportLog(str(tmp_path))
    try:
        log.append(Done(round=1))
        disk.room = room
        for number in (2, 3, 4):
            log.append(Done(round=number))
        assert log.unwritten
        assert log.problem == "No space left on device"
        assert log.last_sequence == 4
        assert log.written_sequence == 4 - len(log.unwritten)
        assert log.pump(0.0)
        disk.room = 1 << 30
        assert log.pump(1.0) == 1.0
        assert (log.unwritten, log.problem, log.written_sequence) == ((), "", 4)
        assert log.pump(2.0) is None
        log.append(Done(round=5))
    finally:
        log.close()
    lines = (tmp_path / FILE_NAME).read_bytes().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4, 5]
    assert rounds(tmp_path) == [1, 2, 3, 4, 5]


def test_a_host_that_died_within_a_line_does_not_spoil_the_next_ones_first(
    tmp_path: Path, disk: Disk
) -> None:
    log = ReportLog(str(tmp_path))
    log.append(Done(round=1))
    disk.room = 10
    log.append(Done(round=2))
    log.close()
    disk.room = 1 << 30
    again = ReportLog(str(tmp_path))
    again.append(Done(round=3))
    again.close()
    assert rounds(tmp_path) == [1, 3]


def test_what_waits_is_bounded_and_reports_outlast_what_the_agent_recorded(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_UNWRITTEN", 10_000)
    disk.room = 20
    log = ReportLog(str(tmp_path))
    log.append(Done(round=1))
    for _ in range(50):
        log.append(Recorded(event="x" * 1000))
    log.append(Ended(state="failed", reason="r"))
    assert isinstance(log.unwritten[0], Done)
    assert isinstance(log.unwritten[-1], Ended)
    assert len(log.unwritten) < 15
    for number in range(2, 400):
        log.append(Done(round=number))
    disk.room = 1 << 30
    assert log.pump(1e9)
    log.close()
    kept = rounds(tmp_path)
    assert kept == list(range(kept[0], 400))
    assert 20 < len(kept) < 200


def test_a_folder_that_takes_no_file_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "group"
    log = ReportLog(str(folder))
    log.append(Done(round=1))
    assert log.unwritten
    folder.mkdir()
    assert log.pump(1.0) == 1.0
    log.close()
    assert rounds(folder) == [1]
