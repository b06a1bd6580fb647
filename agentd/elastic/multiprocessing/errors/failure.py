"""One worker's failure, from its exit status and what it left in files. Reading never raises.

An error file is one JSON object, `{"message": {"message": TEXT, "extraInfo": {"py_callstack": TEXT,
"timestamp": SECONDS}}}` or `{"message": TEXT, "timestamp": SECONDS}`; whatever else a dying worker leaves
there is reported as unreadable and costs nothing more.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from dataclasses import field
from typing import Any

from agentd.quickdata import dataclass

NOT_AVAILABLE = "<N/A>"
MAX_ERROR_FILE_BYTES = 1 << 20
_MAX_TIMESTAMP = 253402300799 - 86400  # no year of five digits, in any time zone


@dataclass
class ProcessFailure:
    """A worker that failed by itself; the first four arguments are torch's."""

    local_rank: int
    """Which of the node's workers it was."""
    pid: int
    """Its process, which is gone."""
    exitcode: int
    """Minus the signal's number if a signal ended it."""
    error_file: str
    """Where the worker's own report was expected; `<N/A>` if it left none."""
    stderr_file: str = field(default="", kw_only=True)
    """What it wrote to stderr, if that went to a file; else empty."""
    exited_at: float = field(default_factory=time.time, kw_only=True)
    """When its end was seen, in seconds since the epoch."""
    error_file_data: dict[str, Any] = field(init=False)
    """The worker's report as it is in the file, or what stands in for it. Each failure has its own."""
    message: Any = field(init=False)
    """The report's message, a text or torch's mapping; without a report, how the process ended."""
    timestamp: int = field(init=False)
    """Whole seconds since the epoch, by the worker's own report if there is one."""
    failed_at: float = field(init=False)
    """On the monotonic clock: when the error file was written, else when the end was seen."""

    def __post_init__(self) -> None:
        now, monotonic_now = time.time(), time.monotonic()
        report, written_at = read_report(self.error_file)
        if report is None:
            self.error_file = NOT_AVAILABLE
            report = self._report_without_file()
            self.message = self._message_without_report("no error file")
            self.timestamp = int(self.exited_at)
        else:
            self.message = report["message"] or self._message_without_report("an empty report")
            self.timestamp = _timestamp_of(report, int(self.exited_at))
        self.error_file_data = report
        moment = min(self.exited_at, written_at or self.exited_at)
        self.failed_at = monotonic_now - max(0.0, now - moment)

    def age_s(self) -> float:
        """Seconds since it failed: what is sent to others, whose clocks differ."""
        return max(0.0, time.monotonic() - self.failed_at)

    def signal_name(self) -> str:
        """The name of the signal that ended it, `<N/A>` if none did."""
        return _signal_name(-self.exitcode) if self.exitcode < 0 else NOT_AVAILABLE

    def timestamp_isoformat(self) -> str:
        """The timestamp in local time, for people."""
        return time.strftime("%Y-%m-%d_%H:%M:%S", time.localtime(self.timestamp))

    def message_text(self) -> str:
        """The message as one text, whichever form the report has."""
        message = (
            self.message.get("message", self.message) if isinstance(self.message, dict) else self.message
        )
        try:
            text = str(message)
        except (RecursionError, ValueError) as error:  # nested, or a number, beyond what Python writes out
            text = f"a message that cannot be shown: {error}"
        # It may quote a file's name that is no text.
        return text.encode("utf-8", "backslashreplace").decode()

    def stderr_tail(self, limit: int = 4096) -> str:
        """The last lines the worker wrote to stderr, at most `limit` bytes of them."""
        return _tail(self.stderr_file, limit)

    def _report_without_file(self) -> dict[str, Any]:
        if self.exitcode < 0:
            return {"message": "<NONE>"}
        traits = {"category": "system_terminated_error", "retryability": "False"}
        return {"message": "<NONE>", "errorTraits": traits}

    def _message_without_report(self, left: str) -> str:
        if self.exitcode < 0:
            return f"Signal {-self.exitcode} ({self.signal_name()}) received by PID {self.pid}"
        return f"PID {self.pid} ended with exit code {self.exitcode} and left {left}"


def read_report(path: str) -> tuple[dict[str, Any] | None, float]:
    """What the error file says and when it was written; `None` without a file.

    What is no report becomes one whose message says so.
    """
    try:
        fd = _opened(path)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None, 0.0
            data, written_at = file.read(MAX_ERROR_FILE_BYTES + 1), status.st_mtime
    except (OSError, ValueError):
        return None, 0.0
    return _parse_report(data), written_at


def _opened(path: str) -> int:
    """Not blocking: a pipe that a worker put in the place of its file must not hold the reader."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _parse_report(data: bytes) -> dict[str, Any]:
    try:
        if len(data) > MAX_ERROR_FILE_BYTES:
            return _unreadable(data, f"over {MAX_ERROR_FILE_BYTES} bytes")
        report = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        return _unreadable(data, str(error))
    if not isinstance(report, dict) or not isinstance(report.get("message"), (str, dict)):
        return _unreadable(data, "no message in it")
    return report


def _unreadable(data: bytes, problem: str) -> dict[str, Any]:
    start = data[:200].decode(errors="replace")
    return {"message": f"its error file cannot be read ({problem}); it begins: {start!r}"}


def _timestamp_of(report: dict[str, Any], default: int) -> int:
    message = report["message"]
    extra = message.get("extraInfo") if isinstance(message, dict) else report
    try:
        stamp = int(extra["timestamp"]) if isinstance(extra, dict) else default
        return stamp if 0 <= stamp <= _MAX_TIMESTAMP else default
    except (KeyError, TypeError, ValueError, OverflowError):
        return default


def _tail(path: str, limit: int) -> str:
    if not path:
        return ""
    try:
        fd = _opened(path)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return ""
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return ""
    if size > limit and b"\n" in data[:-1]:
        data = data[data.index(b"\n") + 1 :]
    return data.decode(errors="replace")


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return NOT_AVAILABLE
