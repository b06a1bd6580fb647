"""A group's reports, numbered and written to `host.jsonl` before anybody is told.

What the disk does not take is kept in memory, in order, and written when the disk takes it; an agentd that
comes before that is told of it over the socket.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from agentd.host.sound import LARGEST_COUNT
from agentd.host.wire import Failed, Recorded, ReportFrame, WireError, as_json, decode
from agentd.quickdata import dataclass

FILE_NAME = "host.jsonl"
RETRY_S = 0.5
"""Between two tries to write what the disk did not take."""
MAX_UNWRITTEN = 4 * 1024 * 1024
"""Bytes that wait for the disk. Beyond them what the agent recorded goes first, then the oldest report."""

_TAIL = 1024 * 1024
_log = logging.getLogger(__name__)
R = TypeVar("R", bound=ReportFrame)


@dataclass(slots=True, eq=False)
class _Line:
    report: ReportFrame
    rest: bytes
    """What of it is not in the file yet."""


class ReportLog:
    """Appends to a group's `host.jsonl`. A later host of the group goes on with the numbers."""

    def __init__(self, group_dir: str) -> None:
        self._path = f"{group_dir}/{FILE_NAME}"
        self._fd = -1
        self._lines: deque[_Line] = deque()
        self._waiting = 0
        self._mend = False
        """Whether the file ends within a line that nobody completes."""
        self._next_try = 0.0
        self.problem = ""
        """Why reports wait for the disk."""
        self.last_sequence = self.written_sequence = self._look_back()
        """The newest report's number, and that of the newest one on disk."""

    @property
    def unwritten(self) -> tuple[ReportFrame, ...]:
        """The reports that are not on disk, oldest first."""
        return tuple(line.report for line in self._lines)

    def append(self, report: R) -> R:
        """The report with its number and time, once it is written or it is known that it cannot be."""
        self.last_sequence += 1
        numbered = replace(report, sequence=self.last_sequence, time=time.time())
        self._keep(_Line(numbered, as_json(numbered) + b"\n"))
        self._write()
        return numbered

    def pump(self, now: float) -> float | None:
        """Try again what the disk did not take, once in a while; when to be called again."""
        if not self._lines:
            return None
        if now >= self._next_try:
            self._next_try = now + RETRY_S
            self._write()
        return self._next_try if self._lines else now

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _look_back(self) -> int:
        """The number of the newest report of an earlier host."""
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL))
                tail = file.read()
        except FileNotFoundError:
            return 0
        # A host that was killed mid-write: its half line must not swallow the next.
        self._mend = bool(tail) and not tail.endswith(b"\n")
        return _last_sequence(tail)

    def _keep(self, line: _Line) -> None:
        self._lines.append(line)
        self._waiting += len(line.rest)
        while self._waiting > MAX_UNWRITTEN and len(self._lines) > 1:
            recorded = (kept for kept in self._lines if isinstance(kept.report, Recorded))
            dropped = next(recorded, self._lines[0])
            # The first may have been begun.
            self._mend = self._mend or dropped is self._lines[0]
            self._lines.remove(dropped)
            self._waiting -= len(dropped.rest)

    def _write(self) -> None:
        try:
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            while self._lines:
                if self._mend:
                    os.write(self._fd, b"\n")
                    self._mend = False
                self._write_some(self._lines[0])
        except OSError as error:
            # A full disk must not end a training that needs none of it: agentd still hears the report.
            if not self.problem:
                _log.error("reports are not on disk: %s: %s", self._path, error)
            self.problem = error.strerror or str(error)
        else:
            self.problem = ""

    def _write_some(self, line: _Line) -> None:
        written = os.write(self._fd, line.rest)
        line.rest = line.rest[written:]
        self._waiting -= written
        if not line.rest:
            self._lines.popleft()
            self.written_sequence = line.report.sequence


def read_reports(group_dir: str, after: int, now: float | None = None) -> tuple[ReportFrame, ...]:
    """The reports with numbers above `after`, oldest first. Lines nobody can read are left out.

    Failures get older until `now`, by default this moment.
    """
    try:
        lines = Path(group_dir, FILE_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    now = time.time() if now is None else now
    found: list[ReportFrame] = []
    for line in reversed(lines):
        try:
            frame = decode(line)
        except WireError:
            continue
        if not isinstance(frame, ReportFrame):
            continue
        if frame.sequence <= after:
            break
        found.append(_older(frame, now))
    return tuple(reversed(found))


def _older(frame: ReportFrame, now: float) -> ReportFrame:
    if not isinstance(frame, Failed):
        return frame
    since = max(0.0, now - frame.time)
    return replace(frame, failures=tuple(replace(f, age_s=f.age_s + since) for f in frame.failures))


def _last_sequence(tail: bytes) -> int:
    for line in reversed(tail.splitlines()):
        try:
            sequence = json.loads(line)["sequence"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if type(sequence) is int and 0 <= sequence <= LARGEST_COUNT:
            return sequence
    return 0
