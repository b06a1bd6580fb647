"""Whatever stands in the journal, agentd starts, keeps what it understands, and answers those who ask."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from agentd.api import historywire
from agentd.api.history import EventsRequest
from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.groups.archive import Archive
from agentd.groups.journal import DAMAGED, Journal, open_for_reading
from agentd.groups.records import EventRow, GroupRow, HubRow, RunRow
from agentd.groups.schema import VERSION

SPEC = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="/x.py")),))
GOOD, BAD = 1, 2
TABLES = ("runs", "groups", "hub", "events")

values = (
    st.none()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=30)
    | st.binary(max_size=30)
    | st.sampled_from(["{", "[]", '{"a": 1}', "[" * 5000, "running", b"\x08\x01", b"\xff" * 9])
)


def records(incarnation: int) -> tuple[RunRow, GroupRow, HubRow, EventRow]:
    status = RunStatus(run_id="job", incarnation=incarnation, phase=Phase.SUCCEEDED, finished_at=1.0)
    return (
        RunRow(run_id="job", incarnation=incarnation, request_id="r", spec=SPEC, status=status),
        GroupRow(run_id="job", incarnation=incarnation, role="default", phase=Phase.RUNNING, token="t"),
        HubRow(run_id="job", incarnation=incarnation, record="{}"),
        EventRow(time=1.0, kind="phase", run_id="job", incarnation=incarnation, phase=Phase.RUNNING),
    )


def columns(db: sqlite3.Connection, table: str) -> list[str]:
    found = db.execute(f"SELECT name FROM pragma_table_info('{table}')")
    return [name for (name,) in found if name not in ("run_id", "incarnation", "id")]


def spoil(path: Path, draw: Any) -> None:
    """Put anything into some columns of the bad rows."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for table in TABLES:
            chosen = draw(st.dictionaries(st.sampled_from(columns(db, table)), values, max_size=3))
            for column, value in chosen.items():
                # A column that takes no NULL keeps what it has.
                db.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE incarnation = ?", (value, BAD))


async def start_again(path: Path) -> Journal:
    journal = Journal(path)
    await journal.start()
    try:
        archive = Archive(path, "n")
        try:
            page = await archive.events(EventsRequest())
            ended = await archive.ended_runs(0, "")
        finally:
            archive.close()
        assert GOOD in {event.incarnation for event in page.events}
        assert GOOD in {run.incarnation for run in ended.runs}
        historywire.events_page_to_message(page)
        historywire.ended_runs_to_message(ended)
        assert await journal.write(*records(3))
    finally:
        await journal.close()
    return journal


async def begin(path: Path) -> None:
    journal = Journal(path)
    await journal.start()
    await journal.write(*records(GOOD), *records(BAD))
    await journal.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_garbage_in_rows_never_stops_a_start_and_costs_no_other_row(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "agentd.db")
        asyncio.run(begin(path))
        spoil(path, data.draw)
        journal = asyncio.run(start_again(path))
        found = journal.remembered
        for kind in (found.runs, found.groups, found.hubs):
            assert GOOD in {row.incarnation for row in kind}
        missing = sum(
            BAD not in {row.incarnation for row in kind} for kind in (found.runs, found.groups, found.hubs)
        )
        assert len(found.unreadable) == missing
        assert (DAMAGED in journal.problems) == bool(missing)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([(0.0625, b"\x80")])  # a name in the schema that is no UTF-8: SQLite's error quotes it
@example([(0.05, b"$")])  # another name in the schema than that of a column
@example([(0.001, b"\0\0\0\0\0\0\0\5")])  # a format of SQLite's that is none yet
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=600)),
        min_size=1,
        max_size=6,
    )
)
def test_bytes_flipped_anywhere_never_stop_a_start(flips: list[tuple[float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "agentd.db")
        asyncio.run(begin(path))
        content = bytearray(path.read_bytes())
        for where, what in flips:
            start = int(where * len(content))
            content[start : start + len(what)] = what[: len(content) - start]
        assume(
            not VERSION < int.from_bytes(content[60:64], "big") < 1000
        )  # who could tell it from a newer one?
        path.write_bytes(content)

        async def begun() -> None:
            journal = Journal(path)
            await journal.start()
            try:
                assert journal.agent_uid
                assert await journal.write(*records(3))
            finally:
                await journal.close()
            assert 3 in {row.incarnation for row in open_for_reading(path).runs}

        asyncio.run(begun())


@pytest.mark.parametrize(
    ("place", "value"),
    [(18, 3), (18, 255), (19, 3), (47, 5), (44, 128), (60, 1), (60, 128), (62, 4), (63, 0), (63, 1)],
)
def test_a_damaged_header_stops_no_start_and_costs_no_row(tmp_path: Path, place: int, value: int) -> None:
    path = tmp_path / "agentd.db"
    asyncio.run(begin(path))
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    journal = asyncio.run(start_again(path))
    assert {row.incarnation for row in journal.remembered.groups} == {GOOD, BAD}
    assert DAMAGED in journal.problems


def test_a_time_that_is_text_is_passed_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    asyncio.run(begin(path))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE events SET time = 'noon' WHERE incarnation = ?", (BAD,))
    asyncio.run(start_again(path))
