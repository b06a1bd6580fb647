"""How values read on a screen. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from agentd.api.signals import signal_name
from agentd.api.types import Failure, LogGap, NodeStatus, WorkerStatus

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def clock_time(seconds: float) -> str:
    """A moment, in local time."""
    if not seconds:
        return "-"
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A length of time, as short as it stays clear."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(number: int) -> str:
    """A number of bytes."""
    value = float(number)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def plural(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ranks(numbers: Iterable[int]) -> str:
    """`0-3, 6`."""
    parts: list[str] = []
    found = sorted(set(numbers))
    start = 0
    for i, number in enumerate(found):
        if i + 1 == len(found) or found[i + 1] != number + 1:
            parts.append(str(number) if i == start else f"{found[start]}-{number}")
            start = i + 1
    return ", ".join(parts)


def exit_of(failure: Failure | WorkerStatus) -> str:
    """How a process ended."""
    if failure.signal is not None:
        return f"killed by {signal_name(failure.signal)}"
    if failure.exit_code is not None:
        return f"exit code {failure.exit_code}"
    return ""


def cut_line(gap: LogGap) -> str:
    """What of a worker's output is not there any more."""
    lost = f"{size(gap.size)} of the oldest part were removed" if gap.size else "the file was cut short"
    return f"[{gap.role} {gap.rank}] {gap.stream.value} of round {gap.round}: {lost} (logs.cap)"


def failed_one(failure: Failure) -> str:
    """Who failed: a rank, or the whole group where no process was there to fail."""
    return f"rank {failure.rank} ({failure.role})" if failure.pid else f"the group of role {failure.role}"


def node_label(node: NodeStatus) -> str:
    """A node as its user calls it."""
    if node.name and node.name != node.node_id:
        return f"{node.node_id} ({node.name})"
    return node.node_id or node.name
