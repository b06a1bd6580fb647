"""A node is the same node for its hubs whatever became of its journal."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agentd.groups.agentuid import FILE_NAME, agent_uid
from agentd.groups.journal import Journal

pytestmark = pytest.mark.asyncio


async def started(folder: Path) -> tuple[str, int]:
    """The uid and the number of a start."""
    journal = Journal(folder / "agentd.db")
    await journal.start()
    await journal.close()
    return journal.agent_uid, journal.daemon_starts


async def test_starts_of_one_state_directory_have_one_uid_and_growing_numbers(tmp_path: Path) -> None:
    first, second = await started(tmp_path), await started(tmp_path)
    assert first[0] == second[0] == (tmp_path / FILE_NAME).read_text().strip()
    assert second[1] == first[1] + 1
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["garbage", "gone"])
async def test_a_node_whose_journal_is_lost_keeps_its_uid_and_comes_after_itself(
    tmp_path: Path, damage: str
) -> None:
    await started(tmp_path)
    before = await started(tmp_path)
    if damage == "garbage":
        (tmp_path / "agentd.db").write_bytes(b"garbage " * 2000)
    else:
        (tmp_path / "agentd.db").unlink()
    after = await started(tmp_path)
    assert after[0] == before[0]
    assert after[1] > before[1]


async def test_the_uid_of_an_older_agentd_is_taken_from_its_journal(tmp_path: Path) -> None:
    uid, _ = await started(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    assert (await started(tmp_path))[0] == uid
    assert (tmp_path / FILE_NAME).read_text().strip() == uid


@pytest.mark.parametrize("content", [b"", b"\xff\x00 no uid", b"0" * 4096])
async def test_a_file_that_holds_no_uid_is_written_again(tmp_path: Path, content: bytes) -> None:
    uid, _ = await started(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(content)
    assert (await started(tmp_path))[0] == uid
    assert (tmp_path / FILE_NAME).read_text().strip() == uid


async def test_a_count_that_nobody_counted_is_begun_again_above_all(tmp_path: Path) -> None:
    _, before = await started(tmp_path)
    with closing(sqlite3.connect(tmp_path / "agentd.db")) as db, db:
        db.execute("UPDATE meta SET value = 'many' WHERE key = 'daemon_starts'")
    assert (await started(tmp_path))[1] > before


async def test_a_disk_that_takes_no_file_is_no_reason_not_to_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert agent_uid(tmp_path, "ab" * 16) == "ab" * 16
    assert "not on disk" in caplog.text
    assert not [name for name in os.listdir(tmp_path) if name != FILE_NAME]
