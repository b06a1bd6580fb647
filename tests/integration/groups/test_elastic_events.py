"""What elastic agents record is in the journal: once, bounded, delaying nobody."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.elastic.events import Event, EventSource
from agentd.groups import records, tidying
from agentd.groups.journal import Journal, open_for_reading
from agentd.groups.records import ElasticEventRow, ForgetRun, RunRow
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="/x.py")),))


def run_row(incarnation: int = 1) -> RunRow:
    status = RunStatus(run_id="job", incarnation=incarnation, phase=Phase.RUNNING)
    return RunRow(run_id="job", incarnation=incarnation, request_id="r", spec=SPEC, status=status)


def event_row(sequence: int, incarnation: int = 1, event: str = "") -> ElasticEventRow:
    text = event or Event("started", EventSource.WORKER, 1000 * sequence, {"rank": sequence}).serialize()
    return ElasticEventRow(
        run_id="job", incarnation=incarnation, role="default", sequence=sequence, event=text
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path / "agentd.db", isolation_level=None)) as db:
        yield db


async def started(path: Path) -> Journal:
    journal = Journal(path / "agentd.db")
    await journal.start()
    return journal


def sequences(path: Path, incarnation: int = 1) -> list[int]:
    with opened(path) as db:
        found = db.execute(
            "SELECT sequence FROM elastic_events WHERE incarnation = ? ORDER BY id", (incarnation,)
        )
        return [row[0] for row in found]


async def test_an_event_is_a_row_with_its_time_and_name(tmp_path: Path) -> None:
    journal = await started(tmp_path)
    await journal.write(run_row(), event_row(3))
    await journal.close()
    with opened(tmp_path) as db:
        (row,) = db.execute("SELECT time, run_id, role, name, source, event FROM elastic_events")
    assert row[:5] == (3.0, "job", "default", "started", "WORKER")
    assert Event.deserialize(row[5]).metadata == {"rank": 3}


async def test_the_same_report_twice_is_one_row(tmp_path: Path) -> None:
    journal = await started(tmp_path)
    await journal.write(run_row(), event_row(1))
    await journal.write(event_row(1), event_row(2))
    await journal.close()
    assert sequences(tmp_path) == [1, 2]


async def test_the_newest_of_each_incarnation_and_of_all_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidying, "KEPT_ELASTIC_EVENTS", 10)
    monkeypatch.setattr(tidying, "KEPT_ELASTIC_EVENTS_IN_ALL", 15)
    journal = await started(tmp_path)
    for incarnation in (1, 2):
        await journal.write(run_row(incarnation), *(event_row(n, incarnation) for n in range(1, 31)))
    await journal.close()
    await (await started(tmp_path)).close()
    assert sequences(tmp_path, 2) == list(range(21, 31))
    assert sequences(tmp_path, 1) == []

    journal = await started(tmp_path)
    await journal.write(*(event_row(n, 1) for n in range(31, 34)))
    await journal.close()
    await (await started(tmp_path)).close()
    assert (sequences(tmp_path, 1), len(sequences(tmp_path, 2))) == ([31, 32, 33], 10)


async def test_events_go_with_their_run(tmp_path: Path) -> None:
    journal = await started(tmp_path)
    await journal.write(run_row(), event_row(1), run_row(2), event_row(1, 2))
    await journal.write(ForgetRun(run_id="job", incarnation=1))
    await journal.close()
    assert (sequences(tmp_path), sequences(tmp_path, 2)) == ([], [1])

    journal = await started(tmp_path)
    await journal.write(event_row(1, 9))  # of a run that is forgotten already
    await journal.close()
    await (await started(tmp_path)).close()
    assert (sequences(tmp_path, 9), sequences(tmp_path, 2)) == ([], [1])


async def test_while_the_disk_hangs_events_wait_for_nobody_and_only_the_newest_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "WAITING_EVENTS", 8)
    journal = await started(tmp_path)
    await journal.write(run_row())
    with opened(tmp_path) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        journal.post(run_row(2))  # what the thread hangs on
        await wait_until_async(lambda: not journal._queue._records)
        before = time.monotonic()
        for number in range(1, 101):
            journal.post(event_row(number))
        assert time.monotonic() - before < 20.0, "none of the hundred has waited"
        blocker.execute("COMMIT")
    await journal.close()
    assert sequences(tmp_path) == list(range(93, 101))


@pytest.mark.parametrize("unfit", ["no JSON", "[]", "[" * 30_000, '{"timestamp": "noon"}'])
async def test_what_is_no_event_costs_no_other(tmp_path: Path, unfit: str) -> None:
    journal = await started(tmp_path)
    assert await journal.write(run_row(), event_row(1, event=unfit), event_row(2))
    await journal.close()
    assert sequences(tmp_path) == [2]
    assert open_for_reading(tmp_path / "agentd.db").runs == (run_row(),)
