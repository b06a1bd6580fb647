"""A group's reports, numbered and written to `host.jsonl` before anybody is told."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from agentd.host.wire import Failed, ReportFrame, WireError, as_json, decode

FILE_NAME = "host.jsonl"

_TAIL = 1024 * 1024
_log = logging.getLogger(__name__)
R = TypeVar("R", bound=ReportFrame)


class ReportLog:
    """Appends to a group's `host.jsonl`. A later host of the group goes on with the numbers."""

    def __init__(self, group_dir: str) -> None:
        self._path = f"{group_dir}/{FILE_NAME}"
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        tail = _read_tail(self._fd)
        self.last_sequence = _last_sequence(tail)
        if tail and not tail.endswith(b"\n"):
            # A host that was killed mid-write: its half line must not swallow the next.
            self._append(b"\n")

    def append(self, report: R) -> R:
        """The report with its number and time, once it is written."""
        self.last_sequence += 1
        numbered = replace(report, sequence=self.last_sequence, time=time.time())
        self._append(as_json(numbered) + b"\n")
        return numbered

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def _append(self, line: bytes) -> None:
        try:
            os.write(self._fd, line)
        except OSError as error:
            # A full disk must not end a training that needs none of it: agentd still hears the report.
            _log.error("a report is not on disk: %s: %s", self._path, error)


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


def _read_tail(fd: int) -> bytes:
    size = os.lseek(fd, 0, os.SEEK_END)
    return os.pread(fd, _TAIL, max(0, size - _TAIL))


def _last_sequence(tail: bytes) -> int:
    for line in reversed(tail.splitlines()):
        try:
            sequence = json.loads(line)["sequence"]
        except (ValueError, KeyError, TypeError):
            continue
        if type(sequence) is int:
            return sequence
    return 0
