"""The journal remembers over restarts, never holds its caller up for long, and says when it is behind."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from agentd.api.errors import JournalUnavailable
from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.groups import journal as journal_module
from agentd.groups import tidying
from agentd.groups.journal import BEHIND, Journal, open_for_reading
from agentd.groups.records import EventRow, ForgetRun, GroupRow, HubRow, RunRow
from agentd.hub.state import HubRecord
from tests.support.waiting import PATIENCE_S, wait_until_async

pytestmark = pytest.mark.asyncio

SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="/x.py")),), labels={"a": "b"})


def run_row(run_id: str = "job", incarnation: int = 1, phase: Phase = Phase.PENDING) -> RunRow:
    status = RunStatus(run_id=run_id, incarnation=incarnation, phase=phase)
    return RunRow(
        run_id=run_id,
        incarnation=incarnation,
        request_id="r",
        spec=SPEC,
        status=status,
        passed_env={"PATH": "/bin"},
    )


def event_row(run_id: str, incarnation: int, time: float = 1.0) -> EventRow:
    return EventRow(time=time, kind="phase", run_id=run_id, incarnation=incarnation, phase=Phase.DONE)


async def started(path: Path) -> Journal:
    journal = Journal(path / "agentd.db")
    await journal.start()
    return journal


async def test_what_was_written_is_remembered_by_the_next(tmp_path: Path) -> None:
    group = GroupRow(run_id="job", incarnation=1, role="default", phase=Phase.RUNNING, token="t", host_pid=7)
    first = await started(tmp_path)
    assert await first.write(run_row(), group)
    await first.hub_announced("job", 1, HubRecord(round=3))
    await first.close()

    second = await started(tmp_path)
    try:
        assert second.remembered.runs == (run_row(),)
        assert second.remembered.groups == (group,)
        assert '"round": 3' in second.remembered.hubs[0].record
        assert second.agent_uid == first.agent_uid
        assert second.daemon_starts == first.daemon_starts + 1
    finally:
        await second.close()
    assert open_for_reading(tmp_path / "agentd.db") == second.remembered


async def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    journal = await started(tmp_path)
    await journal.close()
    assert (tmp_path / "agentd.db").stat().st_mode & 0o077 == 0


async def test_a_run_taken_back_leaves_nothing(tmp_path: Path) -> None:
    journal = await started(tmp_path)
    try:
        await journal.write(run_row(), HubRow(run_id="job", incarnation=1, record="{}"))
        await journal.write(ForgetRun(run_id="job", incarnation=1))
    finally:
        await journal.close()
    remembered = open_for_reading(tmp_path / "agentd.db")
    assert (remembered.runs, remembered.hubs) == ((), ())


async def test_a_disk_that_hangs_delays_once_then_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PATIENCE", 1.0)
    journal = await started(tmp_path)
    blocker = sqlite3.connect(tmp_path / "agentd.db", isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        assert not await journal.write(run_row())
        assert journal.conditions == (BEHIND,)
        started_at = time.monotonic()
        for incarnation in range(2, 12):
            assert not await journal.write(run_row(incarnation=incarnation))
        assert time.monotonic() - started_at < 5.0, "none of the ten has waited"
        with pytest.raises(JournalUnavailable):
            await journal.require(run_row(incarnation=99))
        blocker.execute("COMMIT")
        await wait_until_async(lambda: not journal.conditions)
        monkeypatch.setattr(journal_module, "PATIENCE", PATIENCE_S)
        assert await journal.write(run_row(incarnation=50))
    finally:
        blocker.close()
        await journal.close()
    assert len(open_for_reading(tmp_path / "agentd.db").runs) == 13


async def test_who_has_more_patience_waits_for_a_slow_disk_that_others_wait_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PATIENCE", 0.1)
    journal = await started(tmp_path)
    blocker = sqlite3.connect(tmp_path / "agentd.db", isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        assert not await journal.write(run_row())
        patient = asyncio.ensure_future(journal.write(run_row(incarnation=2), patience=PATIENCE_S))
        await asyncio.sleep(0.3)  # nothing happens: there is nothing to wait on
        assert not patient.done()
        blocker.execute("COMMIT")
        assert await patient
    finally:
        blocker.close()
        await journal.close()


async def test_a_database_that_cannot_be_written_is_tried_again_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PATIENCE", 0.2)
    journal = await started(tmp_path)
    other = sqlite3.connect(tmp_path / "agentd.db")
    try:
        other.execute("ALTER TABLE runs RENAME TO elsewhere")
        other.commit()
        assert not await journal.write(run_row())
        await wait_until_async(lambda: journal.conditions == (BEHIND,))
        other.execute("ALTER TABLE elsewhere RENAME TO runs")
        other.commit()
        await wait_until_async(lambda: not journal.conditions)
    finally:
        other.close()
        await journal.close()
    assert open_for_reading(tmp_path / "agentd.db").runs == (run_row(),)


async def test_history_is_bounded_by_run_and_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidying, "KEPT_EVENTS", 10)
    monkeypatch.setattr(tidying, "KEPT_EVENTS_IN_ALL", 35)
    journal = await started(tmp_path)
    await journal.write(run_row("a"), run_row("b"), run_row("c"), run_row("d"))
    for run_id in ("", "gone", "a", "b", "c", "d"):
        incarnation = int(bool(run_id))
        await journal.write(*(event_row(run_id, incarnation, time=float(number)) for number in range(15)))
    await journal.close()
    await (await started(tmp_path)).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "agentd.db")) as db:
        counted = db.execute("SELECT run_id, COUNT(*), MIN(time) FROM events GROUP BY 1").fetchall()
    assert counted == [("b", 5, 10.0), ("c", 10, 5.0), ("d", 10, 5.0)]


async def test_the_nodes_own_history_outlives_runs_and_that_of_forgotten_runs_goes(tmp_path: Path) -> None:
    journal = await started(tmp_path)
    await journal.write(run_row("job"), event_row("", 0), event_row("job", 1), event_row("gone", 1))
    await journal.close()
    await (await started(tmp_path)).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "agentd.db")) as db:
        assert db.execute("SELECT run_id FROM events ORDER BY id").fetchall() == [("",), ("job",)]


async def test_a_newer_schema_is_refused_with_the_next_step(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "agentd.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(JournalUnavailable, match="upgrade agentd, or give it another state directory"):
        await started(tmp_path)


async def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    journal = await started(tmp_path)
    try:
        written = await asyncio.gather(*(journal.write(run_row(incarnation=n)) for n in range(1, 201)))
    finally:
        await journal.close()
    assert all(written)
    assert len(open_for_reading(tmp_path / "agentd.db").runs) == 200


@pytest.mark.parametrize("unfit", [run_row("bad", 1 << 63), run_row("b\udc80d")])
async def test_a_record_that_nothing_could_write_costs_no_other(tmp_path: Path, unfit: RunRow) -> None:
    journal = await started(tmp_path)
    await journal.write(unfit, run_row("good"))
    assert await journal.write(run_row("later"))
    assert not journal.conditions
    await journal.close()
    again = await started(tmp_path)
    await again.close()
    assert {row.run_id for row in again.remembered.runs} == {"good", "later"}
