"""Ended runs go with their folders and rows, a few at a time; live and unreadable ones and strangers stay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.core.retention import Policy
from agentd.groups import retention as retention_module
from agentd.groups.board import RunKey
from agentd.groups.journal import Journal
from agentd.groups.records import EventRow, ForgetRun, GroupRow, RunRow
from agentd.groups.retention import Retention
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

DAY = 86400.0
SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="/x.py")),))
POLICY = Policy(age=14 * DAY, size=1 << 40)


class SomeRuns:
    """The registry, as far as retention needs it."""

    def __init__(self, journal: Journal, live: set[RunKey]) -> None:
        self.journal = journal
        self.live = live
        self.forgotten: list[RunKey] = []

    async def forget(self, key: RunKey, remove: Callable[[], Awaitable[None]]) -> bool:
        if key in self.live:
            return False
        await remove()
        self.forgotten.append(key)
        await self.journal.write(ForgetRun(run_id=key[0], incarnation=key[1]))
        return True


@pytest_asyncio.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "agentd.db")
    await journal.start()
    yield journal
    await journal.close()


@contextlib.contextmanager
def kept(
    tmp_path: Path, journal: Journal, policy: Policy, *live: RunKey
) -> Iterator[tuple[Retention, SomeRuns]]:
    runs = SomeRuns(journal, set(live))
    retention = Retention(str(tmp_path), policy, runs)
    try:
        yield retention, runs
    finally:
        retention.close()


async def add(
    tmp_path: Path, journal: Journal, run_id: str, incarnation: int, days: float | None, size: int = 4096
) -> Path:
    """A run with its rows and folder, ended so many days ago; None: it lives."""
    phase = Phase.RUNNING if days is None else Phase.FAILED
    ended_at = 0.0 if days is None else time.time() - days * DAY
    status = RunStatus(run_id=run_id, incarnation=incarnation, phase=phase, finished_at=ended_at)
    row = RunRow(run_id=run_id, incarnation=incarnation, request_id="r", spec=SPEC, status=status)
    group = GroupRow(run_id=run_id, incarnation=incarnation, role="default", phase=phase)
    await journal.write(row, group, EventRow(time=1.0, kind="phase", run_id=run_id, incarnation=incarnation))
    return folder_of(tmp_path, run_id, incarnation, size)


def folder_of(tmp_path: Path, run_id: str, incarnation: int, size: int = 4096) -> Path:
    folder = tmp_path / "runs" / run_id / str(incarnation)
    (folder / "default" / "round_1" / "0").mkdir(parents=True)
    (folder / "default" / "round_1" / "0" / "stdout.log").write_bytes(b"x" * size)
    return folder


def rows(tmp_path: Path, table: str) -> set[RunKey]:
    with contextlib.closing(sqlite3.connect(tmp_path / "agentd.db")) as db:
        return set(db.execute(f"SELECT run_id, incarnation FROM {table}"))


async def test_an_old_run_goes_with_its_logs_its_rows_and_its_history(
    tmp_path: Path, journal: Journal
) -> None:
    old = await add(tmp_path, journal, "job", 1, days=20)
    new = await add(tmp_path, journal, "job", 2, days=2)
    only = await add(tmp_path, journal, "other", 1, days=20)
    with kept(tmp_path, journal, POLICY) as (retention, _):
        assert not await retention.step()
    assert (old.exists(), new.exists(), only.parent.exists()) == (False, True, False)
    for table in ("runs", "groups", "events"):
        assert rows(tmp_path, table) == {("job", 2)}


async def test_too_much_takes_the_run_that_ended_first(tmp_path: Path, journal: Journal) -> None:
    mebi = 1 << 20
    first = await add(tmp_path, journal, "a", 2, days=3, size=2 * mebi)
    second = await add(tmp_path, journal, "b", 1, days=2, size=2 * mebi)
    live = await add(tmp_path, journal, "c", 1, None, size=2 * mebi)
    with kept(tmp_path, journal, Policy(age=14 * DAY, size=5 * mebi), ("c", 1)) as (retention, runs):
        await retention.step()
        assert runs.forgotten == [("a", 2)]
        await retention.step()
    assert (first.exists(), second.exists(), live.exists()) == (False, True, True)


async def test_live_runs_stay_whatever_they_take_and_it_is_said_once(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    live = await add(tmp_path, journal, "job", 1, None, size=1 << 20)
    just = await add(tmp_path, journal, "job", 2, days=0.001)
    # Its row says that it is over, and yet it lives again: a node that left has joined once more.
    again = await add(tmp_path, journal, "job", 3, days=30)
    with kept(tmp_path, journal, Policy(age=0, size=0), ("job", 3)) as (retention, runs):
        for _ in range(3):
            await retention.step()
    assert runs.forgotten == []
    assert (live.exists(), just.exists(), again.exists()) == (True, True, True)
    assert caplog.text.count("more than retention.size") == 1


async def test_a_run_that_cannot_be_read_is_not_judged(tmp_path: Path, journal: Journal) -> None:
    unread = await add(tmp_path, journal, "job", 1, days=30)
    await add(tmp_path, journal, "job", 2, days=30)
    with contextlib.closing(sqlite3.connect(tmp_path / "agentd.db")) as db, db:
        db.execute("UPDATE runs SET status = x'ffff' WHERE incarnation = 1")
        db.execute("UPDATE runs SET ended_at = 'long ago' WHERE incarnation = 2")
    with kept(tmp_path, journal, Policy(age=0, size=0)) as (retention, runs):
        await retention.step()
    assert unread.exists()
    assert runs.forgotten == []


async def test_a_folder_nobody_knows_goes_by_age_alone(tmp_path: Path, journal: Journal) -> None:
    fresh, stale = folder_of(tmp_path, "lost", 1), folder_of(tmp_path, "lost", 2)
    past = time.time() - 30 * DAY
    for path in (stale, *stale.rglob("*")):
        os.utime(path, (past, past))
    with kept(tmp_path, journal, Policy(age=14 * DAY, size=0)) as (retention, _):
        await retention.step()
    assert (fresh.exists(), stale.exists()) == (True, False)


async def test_many_runs_go_in_steps(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "RUNS_A_STEP", 3)
    for number in range(1, 8):
        await add(tmp_path, journal, "job", number, days=30)
    with kept(tmp_path, journal, POLICY) as (retention, runs):
        counts = []
        more = True
        while more:
            more = await retention.step()
            counts.append(len(runs.forgotten))
    assert counts == [3, 6, 7]
    assert rows(tmp_path, "runs") == set()


async def test_nothing_outside_is_followed_or_removed(tmp_path: Path, journal: Journal) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "1").mkdir(parents=True)
    (elsewhere / "1" / "precious").touch()
    folder = await add(tmp_path, journal, "job", 1, days=30)
    (folder / "default" / "link").symlink_to(elsewhere)
    await add(tmp_path, journal, "linked", 1, days=30)
    (tmp_path / "runs" / "linked").rename(tmp_path / "moved")
    (tmp_path / "runs" / "linked").symlink_to(elsewhere)
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "job" / "notes").mkdir()
    with kept(tmp_path, journal, Policy(age=0, size=0)) as (retention, _):
        await retention.step()
    assert (elsewhere / "1" / "precious").exists()
    assert (tmp_path / "runs" / "notes").exists()
    assert (tmp_path / "runs" / "job" / "notes").exists()
    assert not folder.exists()


async def test_a_folder_that_cannot_be_removed_keeps_its_row_and_stops_no_other(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(tmp_path, journal, "bad", 1, days=31)
    good = await add(tmp_path, journal, "good", 1, days=30)
    remove = shutil.rmtree

    def failing(path: Path) -> None:
        if path.parent.name == "bad":
            raise PermissionError(13, "not yours", str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", failing)
    with kept(tmp_path, journal, POLICY) as (retention, _):
        await retention.step()
    assert not good.exists()
    assert rows(tmp_path, "runs") == {("bad", 1)}


async def test_a_journal_that_cannot_be_read_ends_nothing(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention_module, "INTERVAL_S", 0.02)
    old = await add(tmp_path, journal, "job", 1, days=30)
    hidden = tmp_path / "hidden.db"
    (tmp_path / "agentd.db").rename(hidden)
    with kept(tmp_path, journal, POLICY) as (retention, _):
        keeping = asyncio.create_task(retention.keep())
        try:
            await wait_until_async(lambda: "cannot be looked through" in caplog.text, 10.0)
            assert old.exists()
            hidden.rename(tmp_path / "agentd.db")
            await wait_until_async(lambda: not old.exists(), 10.0)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def test_damaged_journals_that_were_kept_go_by_age(tmp_path: Path, journal: Journal) -> None:
    aside = tmp_path / "agentd.db.damaged-20260101T000000Z"
    aside.touch()
    with kept(tmp_path, journal, POLICY) as (retention, _):
        await retention.step()
        assert aside.exists()
    with kept(tmp_path, journal, Policy(age=0, size=1 << 40)) as (retention, _):
        await retention.step()
        assert not aside.exists()
    assert (tmp_path / "agentd.db").exists()
