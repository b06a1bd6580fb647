"""`ChildFailedError`: some workers failed, and the report that tells a person which was first and why."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from agentd.elastic.multiprocessing.errors.failure import NOT_AVAILABLE, ProcessFailure

__all__ = ["ChildFailedError"]

_MAX_WIDTH = 60
_MAX_STDERR_BYTES = 4096


class ChildFailedError(Exception):
    """Workers failed. Its text is a report that begins with the first failure.

    `record` copies the first failure's error file up instead of recording this error. Raises `AssertionError`
    without failures, as torch does.
    """

    name: str
    """Whose workers: the role."""
    failures: dict[int, ProcessFailure]
    """By global rank, in no special order."""

    def __init__(self, name: str, failures: Mapping[int, ProcessFailure]) -> None:
        if not failures:
            raise AssertionError("ChildFailedError needs at least one failure")
        self.name = name
        self.failures = dict(failures)
        super().__init__(self.format_msg())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.failures)

    def get_first_failure(self) -> tuple[int, ProcessFailure]:
        """The global rank that failed first, and how.

        First is the smallest timestamp. These are whole seconds: within one, `failed_at` decides.
        """
        return min(self.failures.items(), key=lambda item: _moment(item[1]))

    def format_msg(self, boarder_delim: str = "=", section_delim: str = "-") -> str:
        """The report: the first failure, then the others in the order of `failures`.

        Lines of these characters part it. Entries have torch's lines, without stray spaces.
        """
        first, _ = self.get_first_failure()
        host = os.uname().nodename
        entries = {
            rank: _entry(index, rank, failure, host)
            for index, (rank, failure) in enumerate(self.failures.items())
        }
        title = f"{self.name} FAILED"
        lines = [title, *(line for entry in entries.values() for line in entry.split("\n"))]
        width = min(_MAX_WIDTH, max(map(len, lines)))
        border, section = boarder_delim * width, section_delim * width
        root = entries.pop(first)
        others = [f"Other failures ({len(entries)}):", *entries.values()] if entries else []
        return "\n".join(
            ["", border, title, section, "Root Cause (first observed failure):", root]
            + ([section, *others] if others else [])
            + [border]
        )


def _moment(failure: ProcessFailure) -> tuple[int, float]:
    # Of torch's own failures, too, a report can be made; these know whole seconds only.
    return failure.timestamp, getattr(failure, "failed_at", math.inf)


def _entry(index: int, rank: int, failure: ProcessFailure, host: str) -> str:
    signal = failure.signal_name()
    by_signal = "" if signal == NOT_AVAILABLE else f" ({signal})"
    lines = [
        f"[{index}]:",
        f"  time      : {failure.timestamp_isoformat()}",
        f"  host      : {host}",
        f"  rank      : {rank} (local_rank: {failure.local_rank})",
        f"  exitcode  : {failure.exitcode} (pid: {failure.pid}){by_signal}",
        f"  error_file: {failure.error_file}",
        f"  traceback : {_indented(_cause(failure.message))}",
    ]
    stderr = _stderr_of(failure)
    if stderr:
        lines.append(f"  stderr    : {_indented(stderr)}")
    return "\n".join(lines)


def _cause(message: object) -> str:
    """The traceback if the message has one, else its text."""
    if not isinstance(message, dict):
        return str(message)
    extra = message.get("extraInfo")
    callstack = extra.get("py_callstack") if isinstance(extra, dict) else None
    return str(callstack or message.get("message", NOT_AVAILABLE))


def _stderr_of(failure: ProcessFailure) -> str:
    if failure.error_file != NOT_AVAILABLE or not isinstance(failure, ProcessFailure):
        return ""
    return failure.stderr_tail(_MAX_STDERR_BYTES)


def _indented(text: str) -> str:
    return text.rstrip("\n").replace("\n", "\n  ")
