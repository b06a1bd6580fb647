"""How a drained node reads. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentctl.show.words import clock_time, plural
from agentd.api.types import Drain, DrainMode, DrainReport, GroupRef, NodeInfo, RunRef


def promise(report: DrainReport) -> str:
    """What becomes of what is there."""
    if not report.groups:
        return "nothing runs there"
    runs = _runs(report.groups)
    if report.drain.mode is DrainMode.MOVE:
        return f"it leaves {runs}"
    if report.drain.deadline:
        until = clock_time(report.drain.deadline)
        return f"it waits for {runs} to end, and leaves what is still there at {until}"
    return f"it waits for {runs} to end"


def left_line(info: NodeInfo) -> str:
    """What is left there now."""
    if not info.groups:
        return f"is empty, and {hub_line(info.hub_of)}" if info.hub_of else "is empty"
    groups = ", ".join(f"{ref.run_id}/{ref.role} {ref.phase}" for ref in info.groups)
    return f"has {plural(len(info.groups), 'worker group')} left: {groups}"


def hub_line(hub_of: Sequence[RunRef]) -> str:
    """Why its machine cannot be taken away yet."""
    return (
        f"is the hub of {_named(ref.run_id for ref in hub_of)}: other nodes go on, and need this "
        "agentd to the end"
    )


def drain_line(drain: Drain) -> str:
    """A drain in force: since when, how, and why."""
    how = "leaves its runs" if drain.mode is DrainMode.MOVE else "waits for its runs to end"
    if drain.deadline:
        how += f", until {clock_time(drain.deadline)}"
    reason = f": {drain.reason}" if drain.reason else ""
    return f"drained since {clock_time(drain.since)}, {how}{reason}"


def _runs(groups: Iterable[GroupRef]) -> str:
    return _named(ref.run_id for ref in groups)


def _named(run_ids: Iterable[str]) -> str:
    found = list(dict.fromkeys(run_ids))
    return f"{'run' if len(found) == 1 else 'runs'} {', '.join(found)}"
