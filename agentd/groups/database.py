"""The journal's file: opened, brought to this schema, checked. One that is damaged gives what it still can.

A damaged file is never written again: it is kept beside as `agentd.db.damaged-<time>`, and a new one begins
with every row that could be read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentd.groups.salvage import TABLES, columns, copy_readable, mended_header
from agentd.groups.schema import VERSION, NewerSchema, migrate
from agentd.quickdata import dataclass

CHECK_S = 5.0
"""A file so big that its check takes longer is used after as much of it was checked."""
WAIT_S = 5.0
"""For another process that has the file locked."""

SHARED_MEMORY = "/dev/shm"

_PROGRESS = 10_000
_TOLD_OF_A_DAMAGED_SCHEMA = ("duplicate column name", "table ", "index ")
"""How SQLite begins when a file has another schema than the number in it says."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A database fit for use."""

    db: sqlite3.Connection
    damage: tuple[str, ...] = ()
    """What was lost, a phrase each; empty: nothing."""


class Connection(sqlite3.Connection):
    """Names as damage what SQLite takes for another kind of file, or for a mistake in a statement."""

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        """As SQLite's, with no other errors than its own."""
        try:
            return super().execute(*statement)
        except UnicodeDecodeError as error:
            # Its errors quote what is damaged, which Python may be unable to decode.
            raise sqlite3.DatabaseError(f"its schema is damaged: {error.object!r:.200}") from error
        except sqlite3.OperationalError as error:
            if not str(error).startswith(_TOLD_OF_A_DAMAGED_SCHEMA):
                raise
            raise sqlite3.DatabaseError(f"its schema is damaged: {error}") from error


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is wrong, not the disk full, the file locked, or the statement bad."""
    # SQLITE_CORRUPT and SQLITE_NOTADB; every other code has a class of its own.
    return type(error) is sqlite3.DatabaseError


def open_database(path: Path, now: float) -> Opened:
    """The database of this schema at `path`, made if it is not there.

    Raises `sqlite3.Error` or `OSError` where the disk does not let us, and `NewerSchema`.
    """
    path.touch(mode=0o600)  # it holds environments, secrets among them
    try:
        db = connect(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return _begin_again(path, now, str(error))
    try:
        problem = _checked(db)
    except BaseException:
        db.close()
        raise
    if problem:
        db.close()
        return _begin_again(path, now, problem)
    return Opened(db)


def connect(path: Path) -> sqlite3.Connection:
    """The file, brought to this schema. Raises as SQLite does, and `NewerSchema`."""
    if mended_header(path):
        raise sqlite3.DatabaseError("its header is damaged")
    db = sqlite3.connect(path, timeout=WAIT_S, factory=Connection)
    try:
        migrate(db)
        db.execute("PRAGMA journal_mode = WAL")
        # A crash of agentd loses nothing; only a power cut may lose the last moments.
        db.execute("PRAGMA synchronous = NORMAL")
        # A damaged word must not keep others from being read.
        db.text_factory = _text
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The file of a daemon that lives or not, for reading only. Raises as SQLite does, and `NewerSchema`."""
    with contextlib.closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT_S, factory=Connection)
    ) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise NewerSchema(version, VERSION)
        yield db


@contextlib.contextmanager
def copied(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the file with all that was ever committed, at this schema, where the disk takes no write.

    Nobody may have the file open. Raises `OSError`, also if no other disk takes the copy, as SQLite does, and
    `NewerSchema`.
    """
    with tempfile.TemporaryDirectory(prefix="agentd-journal-", dir=_elsewhere()) as folder:
        shutil.copyfile(path, Path(folder, path.name))
        for suffix in ("-wal", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", Path(folder, f"{path.name}{suffix}"))
        with contextlib.closing(connect(Path(folder, path.name))) as db:
            yield db


def _elsewhere() -> str | None:
    """Memory, if it is there: a disk that is full may be that of the temporary files, too."""
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else None


def _checked(db: sqlite3.Connection) -> str:
    """What is wrong with the file's structure, as far as that can be told in `CHECK_S`."""
    ends = time.monotonic() + CHECK_S
    db.set_progress_handler(lambda: time.monotonic() > ends, _PROGRESS)
    try:
        found = [str(row[0]) for row in db.execute("PRAGMA quick_check(3)")]
    except sqlite3.OperationalError as error:
        _log.info("the journal was not checked to its end", extra={"problem": str(error)})
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        db.set_progress_handler(None, _PROGRESS)
    return _misnamed(db) if found == ["ok"] else "; ".join(found).replace("\n", " ")


def _misnamed(db: sqlite3.Connection) -> str:
    """A table not of this schema: what its columns are called stands on a page that no check reads."""
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        migrate(model)
        for table in TABLES:
            try:
                if columns(db, table) != columns(model, table):
                    return f"table {table} has other columns than it was made with"
            except sqlite3.DatabaseError as error:
                return str(error)
    return ""


def _begin_again(path: Path, now: float, problem: str) -> Opened:
    fresh = path.with_name(f"{path.name}.new")
    _remove(fresh)
    lost = copy_readable(path, fresh, now, _as_it_is)
    aside = _aside(path, now)
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            os.link(f"{path}{suffix}", f"{aside}{suffix}")
    for suffix in ("-wal", "-shm"):
        # They belong to the damaged file; beside the new one they would be taken for its own.
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    fresh.replace(path)
    return Opened(connect(path), (f"{problem:.300}; the file is kept as {aside.name}", *lost))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _as_it_is(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=WAIT_S, factory=Connection)


def _aside(path: Path, now: float) -> Path:
    """A name nobody has."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    names = (f"{path.name}.damaged-{stamp}{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 1000))))
    return next(aside for name in names if not (aside := path.with_name(name)).exists())


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
