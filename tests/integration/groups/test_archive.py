"""The journal answers those who ask, page by page, beside its writer, and says what it cannot answer."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentd.api.errors import InvalidSpec, JournalUnavailable, RunNotFound
from agentd.api.history import Event, EventKind, EventsRequest, EventWorker
from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.groups import archive as archive_module
from agentd.groups.archive import Archive
from agentd.groups.journal import Journal
from agentd.groups.records import EventRow, RunRow

pytestmark = pytest.mark.asyncio

SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="/x.py")),))


def run_row(run_id: str, incarnation: int, finished_at: float = 0.0) -> RunRow:
    phase = Phase.SUCCEEDED if finished_at else Phase.RUNNING
    status = RunStatus(run_id=run_id, incarnation=incarnation, phase=phase, finished_at=finished_at)
    return RunRow(run_id=run_id, incarnation=incarnation, request_id="r", spec=SPEC, status=status)


def event_row(kind: EventKind, run_id: str = "", incarnation: int = 0, detail: str = "") -> EventRow:
    return EventRow(time=1.0, kind=kind.value, run_id=run_id, incarnation=incarnation, detail=detail)


@pytest_asyncio.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "agentd.db")
    await journal.start()
    yield journal
    await journal.close()


@pytest_asyncio.fixture
async def archive(tmp_path: Path, journal: Journal) -> AsyncIterator[Archive]:
    archive = Archive(tmp_path / "agentd.db", "n")
    yield archive
    archive.close()


async def all_pages(archive: Archive, request: EventsRequest) -> list[Event]:
    found: list[Event] = []
    more = True
    while more:
        after = found[-1].id if found else request.after_id
        page = await archive.events(
            EventsRequest(run_id=request.run_id, page_size=request.page_size, after_id=after)
        )
        found.extend(page.events)
        more = page.more
    return found


async def test_an_event_is_told_as_it_was_written(journal: Journal, archive: Archive) -> None:
    workers = (EventWorker(rank=3, local_rank=1, pid=77, signal=9), EventWorker(rank=4, exit_code=0))
    await journal.write(
        EventRow(
            time=5.5, kind="worker_ended", run_id="job", incarnation=2, role="default", phase=Phase.RUNNING,
            round=4, detail="by itself", workers=workers,
        )
    )  # fmt: skip
    (event,) = (await archive.events(EventsRequest())).events
    assert event == Event(
        id=event.id, time=5.5, node_id="n", kind="worker_ended", run_id="job", incarnation=2, role="default",
        phase=Phase.RUNNING, round=4, detail="by itself", workers=workers,
    )  # fmt: skip


async def test_pages_tell_each_event_once_and_in_order(journal: Journal, archive: Archive) -> None:
    for number in range(25):
        await journal.write(event_row(EventKind.PHASE, "job", 1, str(number)))
    found = await all_pages(archive, EventsRequest(run_id="job", page_size=7))
    assert [event.detail for event in found] == [str(number) for number in range(25)]


async def test_a_page_is_bounded_in_bytes_too(
    journal: Journal, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "PAGE_BYTES", 5000)
    for number in range(10):
        await journal.write(event_row(EventKind.PHASE, "job", 1, f"{number}" * 2000))
    page = await archive.events(EventsRequest(run_id="job"))
    assert (len(page.events), page.more) == (2, True)
    assert len(await all_pages(archive, EventsRequest(run_id="job"))) == 10


async def test_the_tail_is_the_newest(journal: Journal, archive: Archive) -> None:
    for number in range(10):
        await journal.write(event_row(EventKind.PHASE, "job", 1, str(number)))
    for tail, first in ((3, 7), (10, 0), (99, 0)):
        page = await archive.events(EventsRequest(run_id="job", tail=tail))
        assert [event.detail for event in page.events] == [str(number) for number in range(first, 10)]


async def test_a_run_is_told_with_what_befell_agentd_in_its_time(journal: Journal, archive: Archive) -> None:
    story = [
        ("", 0, EventKind.AGENTD_STARTED), ("job", 1, EventKind.RUN_STARTED),
        ("", 0, EventKind.AGENTD_STARTED),
        ("other", 1, EventKind.RUN_STARTED), ("job", 1, EventKind.RUN_ENDED), ("", 0, EventKind.AGENTD_ENDED),
        ("job", 2, EventKind.RUN_STARTED), ("", 0, EventKind.AGENTD_ENDED),
    ]  # fmt: skip
    for run_id, incarnation, kind in story:
        await journal.write(event_row(kind, run_id, incarnation))
    first = await archive.events(EventsRequest(run_id="job", incarnation=1))
    newest = await archive.events(EventsRequest(run_id="job"))
    assert [event.kind for event in first.events] == ["run_started", "agentd_started", "run_ended"]
    assert [(event.kind, event.incarnation) for event in newest.events] == [
        ("run_started", 2),
        ("agentd_ended", 0),
    ]


async def test_a_run_that_nobody_knows_is_no_empty_history(journal: Journal, archive: Archive) -> None:
    await journal.write(run_row("quiet", 1))
    assert (await archive.events(EventsRequest(run_id="quiet"))).events == ()
    for request in (EventsRequest(run_id="nobody"), EventsRequest(run_id="quiet", incarnation=7)):
        with pytest.raises(RunNotFound):
            await archive.events(request)


async def test_ids_are_never_used_again(journal: Journal, archive: Archive, tmp_path: Path) -> None:
    await journal.write(event_row(EventKind.PHASE))
    (last,) = (await archive.events(EventsRequest())).events
    with contextlib.closing(sqlite3.connect(tmp_path / "agentd.db")) as db, db:
        db.execute("DELETE FROM events")
    await journal.write(event_row(EventKind.PHASE))
    (next_,) = (await archive.events(EventsRequest(after_id=last.id))).events
    assert next_.id > last.id


async def test_ended_runs_come_newest_end_first_page_by_page(journal: Journal, archive: Archive) -> None:
    ends = {1: 50.0, 2: 10.0, 3: 90.0, 4: 50.0, 5: 0.0, 6: 70.0}
    await journal.write(*(run_row("job", incarnation, end) for incarnation, end in ends.items()))
    found: list[int] = []
    token = ""
    while True:
        page = await archive.ended_runs(2, token)
        found.extend(run.incarnation for run in page.runs)
        token = page.next_page_token
        if not token:
            break
    assert found == [3, 6, 4, 1, 2]


async def test_rows_that_nobody_can_read_are_left_out(
    journal: Journal, archive: Archive, tmp_path: Path
) -> None:
    for number in range(4):
        await journal.write(
            event_row(EventKind.PHASE, "job", 1, str(number)), run_row("job", number + 1, 5.0)
        )
    with contextlib.closing(sqlite3.connect(tmp_path / "agentd.db")) as db, db:
        db.execute("UPDATE events SET workers = '{' WHERE detail = '0'")
        db.execute("UPDATE events SET phase = 'in a new mood' WHERE detail = '1'")
        db.execute("UPDATE runs SET status = x'ffff' WHERE incarnation = 2")
    assert [event.detail for event in await all_pages(archive, EventsRequest(page_size=1))] == ["2", "3"]
    assert [run.incarnation for run in (await archive.ended_runs(0, "")).runs] == [4, 3, 1]


async def test_what_cannot_be_asked_is_said(journal: Journal, archive: Archive) -> None:
    with pytest.raises(InvalidSpec, match="page_token"):
        await archive.ended_runs(1, "nonsense")
    with pytest.raises(InvalidSpec, match="after_id"):
        await archive.events(EventsRequest(after_id=(1 << 64) - 1))


async def test_a_file_that_is_gone_or_no_database_is_a_named_error(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "agentd.db", "n")
    try:
        with pytest.raises(JournalUnavailable, match="cannot be used"):
            await archive.events(EventsRequest())
        (tmp_path / "agentd.db").write_bytes(b"garbage " * 1000)
        with pytest.raises(JournalUnavailable, match="not a database"):
            await archive.ended_runs(1, "")
    finally:
        archive.close()
