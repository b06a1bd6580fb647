"""What a damaged journal still gives: every row that can be reached, from whichever end, into a new file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from agentd.groups.schema import STEPS, VERSION, migrate

TABLES = ("meta", "runs", "groups", "hub", "events", "elastic_events")
_HEADER = 100
"""Bytes, of which two say how long a page is and four how many there are."""


def copy_readable(
    path: Path, fresh: Path, now: float, connect: Callable[[Path], sqlite3.Connection]
) -> list[str]:
    """Make `fresh` of all rows that can be read; answers what is lost. `connect` opens a file as it is."""
    fresh.touch(mode=0o600)
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(_of_full_length(path))
        old = stack.enter_context(contextlib.closing(connect(whole)))
        new = stack.enter_context(contextlib.closing(sqlite3.connect(fresh)))
        old.text_factory = bytes
        version = _version(old)
        migrate(new, STEPS[:version])
        new.commit()
        lost = [problem for table in TABLES if (problem := _copy_table(old, new, table))]
        # Above all revisions and sessions that were ever given out from here.
        new.execute("INSERT OR REPLACE INTO meta VALUES ('daemon_starts', ?)", (str(int(now)),))
        new.commit()
        migrate(new)
    return lost


@contextlib.contextmanager
def _of_full_length(path: Path) -> Iterator[Path]:
    """The file or, if it was cut short, a copy with nothing where it ended: SQLite reads no other."""
    size = _full_size(path)
    if size <= path.stat().st_size:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="agentd-journal-", dir=path.parent) as folder:
        copy = Path(folder, path.name)
        shutil.copyfile(path, copy)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}-wal", f"{copy}-wal")
        with contextlib.suppress(OSError):  # what says how long it was may be damaged, too
            os.truncate(copy, size)
        yield copy


def _full_size(path: Path) -> int:
    """As the file's first page says; 0 if there is none."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
        return 0
    page = int.from_bytes(header[16:18], "big")
    return (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")


def _version(db: sqlite3.Connection) -> int:
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError:
        return VERSION
    return version if 0 < version <= VERSION else VERSION


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> str:
    """Copy row by row, as far as it goes from either end; what is lost, if anything."""
    described = columns(new, table)
    if not described:
        return ""
    names = ", ".join(name for name, _, _ in described)
    # By type: a damaged table may claim any.
    marks = ", ".join("CAST(? AS TEXT)" if kind == "TEXT" else "?" for _, kind, _ in described)
    insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"
    # By place, whatever they are called by now; of a table with more or fewer by what they should be called.
    wanted = f"SELECT {'*' if _width(old, table) == len(described) else names} FROM {table}"
    unfit, problem = _copy_rows(old, wanted, new, insert)
    if problem:
        # A page that is destroyed ends the walk; what is behind it is reached from behind.
        key = sorted((part, place) for place, (_, _, part) in enumerate(described, 1) if part)
        backwards = ", ".join(f"{place} DESC" for _, place in key)
        _copy_rows(old, f"{wanted} ORDER BY {backwards}", new, insert)
        return f"rows of {table} ({problem})"
    return f"{unfit} rows of {table}" if unfit else ""


def columns(db: sqlite3.Connection, table: str) -> list[tuple[str, str, int]]:
    """Name, type and place in the primary key of each; none: there is no such table."""
    return db.execute(f"SELECT name, type, pk FROM pragma_table_info('{table}')").fetchall()


def _width(db: sqlite3.Connection, table: str) -> int:
    with contextlib.suppress(sqlite3.DatabaseError):
        (number,) = db.execute(f"SELECT count(*) FROM pragma_table_info('{table}')").fetchone()
        return int(number)
    return 0


def _copy_rows(old: sqlite3.Connection, wanted: str, new: sqlite3.Connection, insert: str) -> tuple[int, str]:
    """How many rows were unfit, and what ended it early."""
    unfit = 0
    try:
        for row in old.execute(wanted):
            try:
                new.execute(insert, row)
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError, OverflowError):
                unfit += 1
    except sqlite3.DatabaseError as error:
        return unfit, str(error)
    return unfit, ""
