"""What the hosts of a group have reported, read back from its `host.jsonl`. Touches the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from agentd.groups.logs import WorkerLog
from agentd.groups.records import GroupRow
from agentd.host.reports import FILE_NAME
from agentd.procs.identity import ProcessIdentity

T = TypeVar("T")


def logs_on_disk(group: GroupRow, up_to: int | None = None) -> Iterator[WorkerLog]:
    """The log folders of its workers, oldest first: of all, or of those that the first reports tell of."""
    found = _started(group, lambda round_, worker: _log(group.role, round_, worker), up_to)
    # A worker that started on a full disk has none.
    return (log for log in found if log.directory)


def sessions(group: GroupRow) -> Iterator[ProcessIdentity]:
    """The leaders of all its workers' sessions, dead or alive."""
    return _started(
        group, lambda _round, worker: ProcessIdentity(_int(worker["pid"]), _int(worker["start_time"]))
    )


def _started(
    group: GroupRow, read: Callable[[int, dict[str, Any]], T], up_to: int | None = None
) -> Iterator[T]:
    """Each worker whose start was reported. A line nobody can read tells nothing."""
    if not group.directory:
        return
    try:
        lines = Path(group.directory, FILE_NAME).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            report = json.loads(line)
            if report["type"] != "started" or (up_to is not None and report["sequence"] > up_to):
                continue
            found = [read(report["round"], worker) for worker in report["workers"]]
        except (ValueError, KeyError, TypeError):
            continue
        yield from found


def _log(role: str, round_: int, worker: dict[str, Any]) -> WorkerLog:
    folder = worker["log_dir"]
    if not isinstance(folder, str):
        raise TypeError(f"no folder: {folder!r:.60}")
    return WorkerLog(
        role=role,
        round=round_,
        local_rank=_int(worker["local_rank"]),
        rank=_int(worker["rank"]),
        directory=folder,
    )


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"no number: {value!r:.60}")
    return value
