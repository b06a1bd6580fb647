"""What nobody waits for is written with the next that is waited for, or a moment later."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentd.api.types import Phase
from agentd.groups import journal as journal_module
from agentd.groups import writequeue
from agentd.groups.journal import Journal
from agentd.groups.records import EventRow, HubRow
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

NEVER_S = 1000.0


def event(number: int) -> EventRow:
    return EventRow(time=float(number), kind="phase", phase=Phase.DONE)


def times(path: Path) -> list[float]:
    db = sqlite3.connect(path)
    try:
        return [time for (time,) in db.execute("SELECT time FROM events WHERE kind = 'phase' ORDER BY id")]
    finally:
        db.close()


async def started(path: Path) -> Journal:
    journal = Journal(path)
    await journal.start()
    return journal


async def test_they_are_written_in_order_with_what_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LINGER_S", NEVER_S)
    path = tmp_path / "agentd.db"
    journal = await started(path)
    journal.post(event(1), event(2))
    assert await journal.write(event(3), HubRow(run_id="r", incarnation=1, record="{}"))
    assert times(path) == [1.0, 2.0, 3.0]
    journal.post(event(4))
    await journal.close()
    assert times(path) == [1.0, 2.0, 3.0, 4.0], "the last ones too"


async def test_alone_they_wait_for_a_moment_only(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    journal = await started(path)
    try:
        for number in range(3):
            journal.post(event(number))
            await wait_until_async(lambda number=number: float(number) in times(path))  # type: ignore[misc]
    finally:
        await journal.close()


async def test_its_log_is_put_into_the_database_when_nobody_waits_for_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by SQLite in the middle of a write, which would then wait for two fsyncs."""
    monkeypatch.setattr(writequeue, "FOLD_AFTER_S", NEVER_S)
    path = tmp_path / "agentd.db"
    journal = await started(path)
    before = path.stat().st_size
    for number in range(writequeue.FOLDED_TOGETHER):
        # Each takes more than a page, and SQLite by itself would do it after a thousand.
        assert await journal.write(HubRow(run_id=f"r{number}", incarnation=1, record="x" * 20_000))
    assert path.stat().st_size == before, "while it is written to"
    monkeypatch.setattr(writequeue, "FOLD_AFTER_S", 0.01)
    assert await journal.write(event(1))
    await wait_until_async(lambda: path.stat().st_size > before)
    await journal.close()
    assert times(path) == [1.0]


async def test_its_log_does_not_grow_for_ever_without_a_quiet_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writequeue, "FOLD_AFTER_S", NEVER_S)
    monkeypatch.setattr(writequeue, "MOST_PAGES", 100)
    path = tmp_path / "agentd.db"
    journal = await started(path)
    before = path.stat().st_size
    for number in range(200):
        assert await journal.write(HubRow(run_id=f"r{number}", incarnation=1, record="x" * 5000))
    assert path.stat().st_size > before
    await journal.close()
