"""How much of the past the journal keeps: by number, and nothing of runs that are forgotten."""

from __future__ import annotations

import logging
import sqlite3

KEPT_EVENTS = 5000
"""Of one incarnation of a run, and of the node itself."""
KEPT_EVENTS_IN_ALL = 50_000
KEPT_ELASTIC_EVENTS = 10_000
"""Of one incarnation of a run."""
KEPT_ELASTIC_EVENTS_IN_ALL = 50_000

_log = logging.getLogger(__name__)


def tidy_if_possible(db: sqlite3.Connection) -> None:
    """What cannot be tidied now, on a disk that is full perhaps, is tidied another time."""
    try:
        _tidy(db)
    except sqlite3.Error as error:
        _log.warning("the journal cannot be tidied", extra={"problem": str(error)})


def _tidy(db: sqlite3.Connection) -> None:
    """Forget what belongs to no run, and the oldest events."""
    with db:
        for table in ("groups", "hub"):
            db.execute(
                f"DELETE FROM {table} WHERE (run_id, incarnation) NOT IN "
                "(SELECT run_id, incarnation FROM runs)"
            )
        _tidy_events(db, "events", each=KEPT_EVENTS, in_all=KEPT_EVENTS_IN_ALL)
        _tidy_events(db, "elastic_events", each=KEPT_ELASTIC_EVENTS, in_all=KEPT_ELASTIC_EVENTS_IN_ALL)


def _tidy_events(db: sqlite3.Connection, table: str, *, each: int, in_all: int) -> None:
    """Bound them as a whole and by incarnation, and forget those of forgotten runs, not those of the node."""
    db.execute(f"DELETE FROM {table} WHERE id <= (SELECT MAX(id) FROM {table}) - ?", (in_all,))
    runs = {("", 0), *db.execute("SELECT run_id, incarnation FROM runs")}
    counted = db.execute(f"SELECT run_id, incarnation, COUNT(*) FROM {table} GROUP BY 1, 2").fetchall()
    for run_id, incarnation, count in counted:
        kept = each if (run_id, incarnation) in runs else 0
        if count > kept:
            db.execute(
                f"DELETE FROM {table} WHERE run_id = ? AND incarnation = ? AND id NOT IN "
                f"(SELECT id FROM {table} WHERE run_id = ? AND incarnation = ? ORDER BY id DESC LIMIT ?)",
                (run_id, incarnation, run_id, incarnation, kept),
            )
