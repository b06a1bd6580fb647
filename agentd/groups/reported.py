"""What the hosts of a group have reported, read back from its `host.jsonl`. Touches the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agentd.groups.logs import WorkerLog
from agentd.groups.records import GroupRow
from agentd.host.reports import FILE_NAME
from agentd.host.wire import Started, WireError, decode
from agentd.procs.identity import ProcessIdentity


def logs_on_disk(group: GroupRow, up_to: int | None = None) -> Iterator[WorkerLog]:
    """The log folders of its workers, oldest first: of all, or of those that the first reports tell of."""
    for report in _started(group):
        if up_to is not None and report.sequence > up_to:
            continue
        for worker in report.workers:
            yield WorkerLog(
                role=group.role,
                round=report.round,
                local_rank=worker.local_rank,
                rank=worker.rank,
                directory=worker.log_dir,
            )


def sessions(group: GroupRow) -> Iterator[ProcessIdentity]:
    """The leaders of all its workers' sessions, dead or alive."""
    for report in _started(group):
        for worker in report.workers:
            yield ProcessIdentity(worker.pid, worker.start_time)


def restart_count(group: GroupRow) -> int:
    """Restarts of the run, as the newest place of its workers said."""
    return max((report.restart_count for report in _started(group)), default=0)


def _started(group: GroupRow) -> Iterator[Started]:
    """The reports of workers that were started. A line nobody can read tells nothing."""
    if not group.directory:
        return
    try:
        lines = Path(group.directory, FILE_NAME).read_bytes().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            report = decode(line)
        except WireError:
            continue
        if isinstance(report, Started):
            yield report
