"""What a damaged journal still gives: every row that can be reached, from whichever end, into a new file."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from agentd.groups.schema import STEPS, VERSION, migrate

TABLES = ("meta", "runs", "groups", "hub", "events", "elastic_events")
_HEADER = 100
"""Bytes. What they are is in https://www.sqlite.org/fileformat.html#the_database_header."""
_MAGIC = b"SQLite format 3\0"
_HIGHEST_FORMAT = 4
_HIGHEST_VERSION = 999
"""Of any schema of ours, ever."""


def copy_readable(
    path: Path, fresh: Path, now: float, connect: Callable[[Path], sqlite3.Connection]
) -> list[str]:
    """Make `fresh` of all rows that can be read; answers what is lost. `connect` opens a file as it is."""
    fresh.touch(mode=0o600)
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(_readable_form(path))
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


def mended_header(path: Path) -> bytes:
    """The file's header as it should be; empty if it is sound, or no header of SQLite's at all.

    What SQLite does not take for damage: versions that make the file one of a later SQLite, for reading only
    or not even that, and a number of our schema that can never have been there.
    """
    header = _header(path)
    sound = bytearray(header)
    if header:
        if max(header[18:20]) > 2:
            sound[18:20] = b"\2\2"  # with a write-ahead log
        if int.from_bytes(header[44:48], "big") > _HIGHEST_FORMAT:
            sound[44:48] = _HIGHEST_FORMAT.to_bytes(4, "big")
        if int.from_bytes(header[60:64], "big") > _HIGHEST_VERSION:
            sound[60:64] = VERSION.to_bytes(4, "big")
    return bytes(sound) if sound != header else b""


@contextlib.contextmanager
def _readable_form(path: Path) -> Iterator[Path]:
    """The file or, if its header is damaged or it was cut short, a copy that SQLite reads."""
    size, header = _full_size(path), mended_header(path)
    if size <= path.stat().st_size and not header:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="agentd-journal-", dir=path.parent) as folder:
        copy = Path(folder, path.name)
        shutil.copyfile(path, copy)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}-wal", f"{copy}-wal")
        with copy.open("r+b") as file, contextlib.suppress(OSError):
            file.write(header)
            if size > path.stat().st_size:  # what says how long it was may be damaged, too
                file.truncate(size)
        yield copy


def _full_size(path: Path) -> int:
    """As the file's first page says; 0 if there is none."""
    header = _header(path)
    if not header:
        return 0
    page = int.from_bytes(header[16:18], "big")
    return (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")


def _header(path: Path) -> bytes:
    """Empty if the file has none."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
    return header if len(header) == _HEADER and header.startswith(_MAGIC) else b""


def _version(db: sqlite3.Connection) -> int:
    """Of its schema: the newest that it has whole, else what its header says."""
    with contextlib.suppress(sqlite3.DatabaseError):
        for version in range(VERSION, 0, -1):
            if _has_schema(db, version):
                return version
        (told,) = db.execute("PRAGMA user_version").fetchone()
        return told if 0 < told <= VERSION else VERSION
    return VERSION


def _has_schema(db: sqlite3.Connection, version: int) -> bool:
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        migrate(model, STEPS[:version])
        model.text_factory = db.text_factory
        return all(columns(db, table) == columns(model, table) for table in TABLES)


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
