"""A damaged journal never stops a start: what can be read is kept, what cannot is named, the file is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.groups import database
from agentd.groups.journal import BEHIND, DAMAGED, Journal, open_for_reading
from agentd.groups.records import GroupRow, HubRow, RunRow
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="/x.py")),), labels={"a": "b" * 500})
NUMBER = 300


def run_row(incarnation: int, phase: Phase = Phase.RUNNING) -> RunRow:
    status = RunStatus(run_id="job", incarnation=incarnation, phase=phase)
    return RunRow(run_id="job", incarnation=incarnation, request_id="r", spec=SPEC, status=status)


def group_row(incarnation: int) -> GroupRow:
    return GroupRow(run_id="job", incarnation=incarnation, role="default", phase=Phase.RUNNING, token="t")


async def filled(path: Path) -> Journal:
    """A closed journal of many runs, each with its group and hub."""
    journal = Journal(path)
    await journal.start()
    for number in range(1, NUMBER + 1):
        hub = HubRow(run_id="job", incarnation=number, record="{}")
        journal.post(run_row(number), group_row(number), hub)
    await journal.close()
    return journal


async def opened(path: Path) -> Journal:
    journal = Journal(path)
    await journal.start()
    return journal


def _without_cache(connect: Callable[[Path], sqlite3.Connection]) -> Callable[[Path], sqlite3.Connection]:
    """What SQLite still has in its memory, it does not find damaged."""

    def connected(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA cache_size = 1")
        return db

    return connected


def damaged_files(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path.parent) if ".damaged-" in name)


@pytest.mark.parametrize("content", [b"garbage " * 2000, b"SQLite format 3\0" + b"\xff" * 4096, b"\0" * 9000])
async def test_a_file_that_is_no_database_is_moved_aside_and_a_new_one_begun(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "agentd.db"
    path.write_bytes(content)
    journal = await opened(path)
    try:
        (aside,) = damaged_files(path)
        assert (tmp_path / aside).read_bytes() == content
        assert journal.conditions == ()
        assert aside in journal.problems[DAMAGED]
        assert await journal.write(run_row(1))
    finally:
        await journal.close()
    again = await opened(path)
    await again.close()
    assert (again.remembered.runs, again.problems) == ((run_row(1),), {})


async def test_a_lost_file_does_not_bring_old_numbers_back(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    before = await opened(path)
    await before.close()
    path.write_bytes(b"garbage " * 2000)
    after = await opened(path)
    await after.close()
    assert after.daemon_starts > before.daemon_starts
    assert after.daemon_starts << 32 < 1 << 63


async def test_what_pages_still_tell_is_kept_when_others_are_destroyed(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    before = await filled(path)
    content = bytearray(path.read_bytes())
    page = 4096
    # The last of the file's many pages: rows of runs, groups or hubs, not their tables' roots.
    for start in range(len(content) * 3 // 4 // page * page, len(content), page):
        content[start : start + page] = b"\xa5" * page
    path.write_bytes(content)

    journal = await opened(path)
    try:
        assert journal.agent_uid == before.agent_uid
        assert DAMAGED in journal.problems
        found = journal.remembered
        assert found.runs or found.groups or found.hubs
        assert len(found.runs) + len(found.groups) + len(found.hubs) < 3 * NUMBER
        assert await journal.write(run_row(9000))
    finally:
        await journal.close()
    again = await opened(path)
    await again.close()
    assert again.problems == {}
    kept = [row.incarnation for row in found.runs]
    assert [row.incarnation for row in again.remembered.runs] == [*kept, 9000]


def rows_of(journal: Journal) -> int:
    found = journal.remembered
    return len(found.runs) + len(found.groups) + len(found.hubs)


async def test_a_destroyed_page_in_the_middle_costs_its_own_rows(tmp_path: Path) -> None:
    path, page = tmp_path / "agentd.db", 4096
    await filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        leaves = "SELECT pageno FROM dbstat WHERE name = 'runs' AND pagetype = 'leaf' ORDER BY path"
        try:
            (middle,) = (pages := db.execute(leaves).fetchall())[len(pages) // 2]
        except sqlite3.OperationalError:
            pytest.skip("this SQLite does not tell what its pages hold")
    content = bytearray(path.read_bytes())
    content[(middle - 1) * page : middle * page] = b"\xa5" * page
    path.write_bytes(content)
    journal = await opened(path)
    await journal.close()
    assert DAMAGED in journal.problems
    kept = [row.incarnation for row in journal.remembered.runs]
    assert (kept[0], kept[-1]) == (1, NUMBER), "from both ends"
    assert len(kept) >= NUMBER - 20


async def test_a_file_that_was_cut_short_gives_what_is_left_of_it(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    os.truncate(path, path.stat().st_size * 9 // 10)
    before = path.read_bytes()
    journal = await opened(path)
    await journal.close()
    (aside,) = damaged_files(path)
    assert (tmp_path / aside).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([aside, "agent_uid", "agentd.db"])
    assert DAMAGED in journal.problems
    assert NUMBER < rows_of(journal) < 3 * NUMBER


async def test_a_column_of_another_name_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    content = path.read_bytes()
    assert content.count(b"request_id TEXT") == 1
    path.write_bytes(content.replace(b"request_id TEXT", b"request_ib TEXT"))
    journal = await opened(path)
    await journal.close()
    assert "table runs has other columns" in journal.problems[DAMAGED]
    assert rows_of(journal) == 3 * NUMBER


async def test_a_word_of_agentds_own_that_is_no_text_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(
            "UPDATE meta SET value = CAST(x'31ff32' AS TEXT) WHERE key IN ('daemon_starts', 'boot_id')"
        )
        db.commit()
    journal = await opened(path)
    await journal.close()
    assert journal.daemon_starts > 1_000_000_000, "as the clock goes: higher than all before"
    assert rows_of(journal) == 3 * NUMBER


async def test_rows_that_cannot_be_read_cost_no_others_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE runs SET passed_env = '{' WHERE incarnation = 1")
        db.execute("UPDATE runs SET spec = x'ffff' WHERE incarnation = 2")
        db.execute("UPDATE runs SET request_id = CAST(x'ff' AS TEXT) WHERE incarnation = 3")
        db.execute("UPDATE groups SET phase = 'in a new mood' WHERE incarnation = 4")
        db.execute("UPDATE groups SET host_pid = 'seven' WHERE incarnation = 5")
        db.execute("UPDATE hub SET record = '[]' WHERE incarnation = 6")
    journal = await opened(path)
    await journal.close()
    found = journal.remembered
    numbers = set(range(1, NUMBER + 1))
    assert {row.incarnation for row in found.runs} == numbers - {1, 2, 3}
    assert {row.incarnation for row in found.groups} == numbers - {4, 5}
    assert {row.incarnation for row in found.hubs} == numbers - {6}
    told = journal.problems[DAMAGED]
    for number in range(1, 7):
        assert f"incarnation {number}:" in told
    assert damaged_files(path) == []
    assert len(open_for_reading(path).unreadable) == 6


async def test_of_very_many_unreadable_rows_the_number_is_told(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE groups SET phase = 'in a new mood'")
    journal = await opened(path)
    await journal.close()
    assert f"{NUMBER - 20} more rows" in journal.problems[DAMAGED]
    assert len(journal.problems[DAMAGED]) < 5000


async def test_a_file_that_is_destroyed_while_it_is_written_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    monkeypatch.setattr(database, "connect", _without_cache(database.connect))
    journal = await opened(path)
    try:
        with path.open("r+b") as file:
            file.write(b"\xa5" * path.stat().st_size)
        journal.post(*(run_row(number) for number in range(1000, 1100)))
        await wait_until_async(lambda: DAMAGED in journal.problems, 20.0)
        await wait_until_async(lambda: BEHIND not in journal.problems, 20.0)
        assert await journal.write(run_row(2000))
    finally:
        await journal.close()
    kept = {row.incarnation for row in open_for_reading(path).runs}
    assert {*range(1000, 1100), 2000} <= kept
    assert damaged_files(path)


async def test_a_check_that_takes_too_long_is_given_up_and_the_file_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    monkeypatch.setattr(database, "CHECK_S", -1.0)
    monkeypatch.setattr(database, "_PROGRESS", 1)
    journal = await opened(path)
    await journal.close()
    assert len(journal.remembered.runs) == NUMBER
    assert journal.problems == {}


async def test_opening_a_whole_file_moves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    await filled(path)
    for _ in range(3):
        journal = await opened(path)
        await journal.close()
        assert journal.problems == {}
    assert sorted(os.listdir(tmp_path)) == ["agent_uid", "agentd.db"]


async def test_many_starts_at_a_damaged_file_keep_all_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    for number in range(3):
        path.write_bytes(b"garbage %d" % number * 1000)
        journal = await opened(path)
        await journal.close()
        await asyncio.sleep(0)
    assert len(damaged_files(path)) == 3
