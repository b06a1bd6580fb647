"""An agentd that begins on a disk that takes no write goes on with what the journal says, and catches up."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from agentd.api.errors import JournalUnavailable
from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.groups import database
from agentd.groups import journal as journal_module
from agentd.groups.database import Opened, open_database
from agentd.groups.journal import BEHIND, Journal
from agentd.groups.records import RunRow
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="/x.py")),))


def row(incarnation: int) -> RunRow:
    status = RunStatus(run_id="job", incarnation=incarnation, phase=Phase.RUNNING)
    return RunRow(run_id="job", incarnation=incarnation, request_id="r", spec=SPEC, status=status)


class Disk:
    """Lets nobody open the journal for writing while it is full."""

    def __init__(self) -> None:
        self.full = True

    def open(self, path: Path, now: float) -> Opened:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        return open_database(path, now)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    monkeypatch.setattr(journal_module, "open_database", found.open)
    return found


async def begun(path: Path) -> Journal:
    journal = Journal(path / "agentd.db")
    await journal.start()
    return journal


async def killed(path: Path, *rows: RunRow) -> tuple[str, int]:
    """What an agentd leaves that was killed: all that it wrote is in the write-ahead log only."""
    living = path / "living"
    living.mkdir()
    journal = await begun(living)
    await journal.write(*rows)
    for file in living.iterdir():
        shutil.copy(file, path / file.name)
    await journal.close()
    return journal.agent_uid, journal.daemon_starts


async def test_it_knows_all_that_was_committed_and_writes_what_waited_when_it_can(
    tmp_path: Path, disk: Disk
) -> None:
    disk.full = False
    uid, starts = await killed(tmp_path, row(1), row(2))
    disk.full = True
    journal = await begun(tmp_path)
    try:
        assert journal.remembered.runs == (row(1), row(2))
        assert journal.agent_uid == uid
        assert journal.daemon_starts > max(starts, time.time() - 60)
        assert journal.conditions == (BEHIND,)
        assert "disk is full" in journal.problems[BEHIND]
        assert not await journal.write(row(3))
        with pytest.raises(JournalUnavailable):
            await journal.require(row(4))
        assert "agentd began with what it could read" in journal.problems[BEHIND]
        disk.full = False
        await wait_until_async(lambda: not journal.conditions, 20)
        assert await journal.write(row(5))
    finally:
        await journal.close()
    again = await begun(tmp_path)
    await again.close()
    assert [run.incarnation for run in again.remembered.runs] == [1, 2, 3, 4, 5]
    assert (again.agent_uid, again.daemon_starts) == (uid, journal.daemon_starts + 1)


async def test_two_starts_in_a_row_that_cannot_be_counted_have_numbers_of_their_own(
    tmp_path: Path, disk: Disk
) -> None:
    disk.full = False
    await killed(tmp_path, row(1))
    disk.full = True
    numbers = []
    for _ in range(2):
        journal = await begun(tmp_path)
        await journal.close()
        numbers.append(journal.daemon_starts)
        # An agentd's life is longer than a second, which is the number's resolution.
        await wait_until_async(lambda: time.time() >= numbers[-1], 10)
    assert numbers[0] < numbers[1]


async def test_without_a_journal_or_a_place_for_its_copy_it_is_refused_by_the_cause(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JournalUnavailable, match="disk is full"):
        await begun(tmp_path)
    disk.full = False
    await killed(tmp_path, row(1))
    disk.full = True
    monkeypatch.setattr(database, "_elsewhere", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(JournalUnavailable, match="disk is full"):
        await begun(tmp_path)
