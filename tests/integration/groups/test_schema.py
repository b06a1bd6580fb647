"""A journal of an older agentd becomes one of this, whole or not at all; one of a newer agentd is refused."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agentd.api.errors import JournalUnavailable
from agentd.api.types import Phase
from agentd.groups.journal import Journal
from agentd.groups.schema import STEPS, VERSION, NewerSchema, Step, migrate
from tests.support import journals


async def _opened(path: Path) -> Journal:
    journal = Journal(path)
    await journal.start()
    await journal.close()
    return journal


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        (found,) = db.execute("PRAGMA user_version").fetchone()
    return int(found)


def structure(path: Path) -> set[tuple[str, str]]:
    """Tables, indexes and their columns, however they were made."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return {
            (table, str(db.execute(f"PRAGMA table_xinfo({table})").fetchall()))
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_auto%'")
        }


def test_steps_are_numbered_without_a_gap_and_there_is_a_journal_of_every_older_version() -> None:
    assert [step.version for step in STEPS] == list(range(1, VERSION + 1))
    kept = {int(name.split("_")[1].removesuffix(".sql")) for name in journals.NAMES}
    assert kept == set(range(1, VERSION))


@pytest.mark.parametrize("name", journals.NAMES)
def test_an_older_journal_keeps_all_it_has(tmp_path: Path, name: str) -> None:
    path = tmp_path / "agentd.db"
    journals.restore(name, path)
    journal = asyncio.run(_opened(path))

    found = journal.remembered
    assert (found.unreadable, journal.damage) == ((), ())
    assert [(run.incarnation, run.status.phase) for run in found.runs] == [
        (1700000000000, Phase.SUCCEEDED),
        (1700000300000, Phase.FAILED),
        (journals.LIVE, Phase.RUNNING),
    ]
    assert (found.groups[0].token, found.groups[0].host_pid, found.groups[0].round) == ("t0k", 71, 3)
    assert found.hubs[0].record == '{"round": 3}'
    assert (journal.agent_uid, journal.daemon_starts) == ("0123456789abcdef" * 2, 2)
    assert version(path) == VERSION


@pytest.mark.parametrize("name", journals.NAMES)
def test_an_older_journal_is_like_a_new_one_afterwards(tmp_path: Path, name: str) -> None:
    journals.restore(name, tmp_path / "old.db")
    for path in (tmp_path / "old.db", tmp_path / "new.db"):
        asyncio.run(_opened(path))
    assert structure(tmp_path / "old.db") == structure(tmp_path / "new.db")


def test_version_1s_history_and_ends_are_told_as_version_2_tells_them(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    journals.restore("schema_1.sql", path)
    asyncio.run(_opened(path))
    with contextlib.closing(sqlite3.connect(path)) as db:
        events = db.execute("SELECT id, time, kind, phase, detail FROM events").fetchall()
        ends = db.execute("SELECT ended_at FROM runs ORDER BY incarnation").fetchall()
        recorded = db.execute("SELECT sequence, name FROM elastic_events").fetchall()
    assert events == [
        (1, 1700000601.5, "phase", "rendezvous", "waiting"),
        (2, 1700000602.5, "phase", "running", ""),
    ]
    # The second never said when it ended: its start counts.
    assert [round(end, 3) for (end,) in ends] == [1700000500.25, 1700000300.0, 0.0]
    assert recorded == [(4, "started")]


@pytest.mark.parametrize("name", journals.NAMES)
def test_a_step_that_fails_leaves_the_old_state(tmp_path: Path, name: str) -> None:
    path = tmp_path / "agentd.db"
    journals.restore(name, path)
    before = journals.dump(path)
    broken = (*STEPS[:-1], Step(VERSION, (*STEPS[-1].statements, "SELECT no_such_function()")))
    with contextlib.closing(sqlite3.connect(path)) as db:
        with pytest.raises(sqlite3.OperationalError, match="no_such_function"):
            migrate(db, broken)
    assert journals.dump(path) == before
    asyncio.run(_opened(path))
    assert version(path) == VERSION


def test_death_in_the_middle_of_a_step_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    journals.restore("schema_1.sql", path)
    before = journals.dump(path)
    program = """
        import os, signal, sqlite3, sys
        from agentd.groups.schema import STEPS, VERSION, Step, migrate
        def die(db):
            os.kill(os.getpid(), signal.SIGKILL)
        db = sqlite3.connect(sys.argv[1])
        db.execute("PRAGMA cache_spill = 1")
        migrate(db, (*STEPS[:-1], Step(VERSION, (*STEPS[-1].statements, die))))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        cwd=Path(__file__).parents[3], timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    assert journals.dump(path) == before


def test_a_first_start_that_died_between_two_tables_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        db.commit()
    assert asyncio.run(_opened(path)).daemon_starts == 1


def test_a_newer_schema_is_refused_with_the_next_step_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agentd.db"
    asyncio.run(_opened(path))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = journals.dump(path)
    with pytest.raises(JournalUnavailable, match="upgrade agentd"):
        asyncio.run(_opened(path))
    assert journals.dump(path) == before
    with contextlib.closing(sqlite3.connect(path)) as db, pytest.raises(NewerSchema) as refused:
        migrate(db)
    assert (refused.value.found, refused.value.known) == (VERSION + 1, VERSION)
