"""Journals of older agentds, as SQL text, and files made of them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.name for path in FOLDER.glob("*.sql")))
LIVE = 1700000600000
"""The incarnation of the run `job` in them that has not ended."""


def restore(name: str, path: Path) -> None:
    """Make the database file of that journal."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript((FOLDER / name).read_text(encoding="utf-8"))


def dump(path: Path) -> list[str]:
    """All that is in a file, its version too."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        return [f"version {version}", *db.iterdump()]
