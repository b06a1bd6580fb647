"""Timer requests as lines on a pipe: torch's format, read so that garbage costs only itself.

One JSON object a line, keys in this order: version, pid, scope_id, expiration_time (seconds since the
epoch, negative releases), signal. A line of at most PIPE_BUF bytes is written in one piece, so what is whole
is found also behind the half of another.
"""

from __future__ import annotations

import json
import math
import select
import signal as signals

from agentd.elastic.timer.api import TimerRequest

__all__ = ["FileTimerRequest", "LineReader", "parse"]

VERSION = 1
HEAD = b'{"version": '
HIGHEST_PID = 1 << 22
NAN_MESSAGE = "expiration_time is not a number"


class FileTimerRequest(TimerRequest):
    """A request on the pipe of a `FileTimerServer`. Equal by value, as torch's.

    `worker_pid`: the process that asks. `scope_id`, `expiration_time`: as in `TimerRequest`.
    `signal`: what the process gets when time is up; 0 or less: nothing but the event "timer expired".
    """

    __slots__ = ("signal", "version")

    def __init__(self, worker_pid: int, scope_id: str, expiration_time: float, signal: int = 0) -> None:
        super().__init__(worker_pid, scope_id, expiration_time)
        self.version = VERSION
        """Of the format; servers of torch and ours do not look at it."""
        self.signal = signal

    @property
    def worker_pid(self) -> int:
        """The process that asked."""
        pid: int = self.worker_id
        return pid

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FileTimerRequest):
            return NotImplemented
        return super().__eq__(other) and (self.version, self.signal) == (other.version, other.signal)

    __hash__ = None

    def to_json(self) -> str:
        """The line without its newline, all ASCII."""
        return json.dumps(
            {
                "version": self.version,
                "pid": self.worker_pid,
                "scope_id": self.scope_id,
                "expiration_time": self.expiration_time,
                "signal": self.signal,
            }
        )


class LineReader:
    """Turns what arrives on the pipe into requests. Holds one line's worth of bytes, whatever comes."""

    def __init__(self) -> None:
        self._line = b""
        self._garbage = 0
        self.sample = b""
        """How the last line that was none began, or what was kept of it began."""

    def feed(self, data: bytes) -> list[FileTimerRequest]:
        """The requests that are complete with `data`."""
        *lines, rest = data.split(b"\n")
        found = []
        for line in lines:
            whole, self._line = self._line + line, b""
            found += self._read(whole)
        # The end of an endless line may be a request behind somebody's garbage; its start cannot be one.
        self._line = (self._line + rest)[-2 * select.PIPE_BUF :]
        return found

    def take_garbage(self) -> int:
        """How many lines were no requests since this was asked last."""
        count, self._garbage = self._garbage, 0
        return count

    def _read(self, line: bytes) -> list[FileTimerRequest]:
        if not line.strip():
            return []
        try:
            return [parse(line)]
        except (ValueError, RecursionError):
            self._garbage += 1
            self.sample = line[:80]
        # No request holds these bytes inside itself: JSON would escape the quotes.
        start = line.rfind(HEAD)
        if start <= 0:
            return []
        try:
            return [parse(line[start:])]
        except (ValueError, RecursionError):
            return []


def parse(line: bytes) -> FileTimerRequest:
    """Read one line; raises ValueError, or RecursionError, if it is no request."""
    if len(line) > select.PIPE_BUF:
        raise ValueError(f"a line of {len(line)} bytes, at most {select.PIPE_BUF} are one request")
    fields = json.loads(line.decode())
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    scope = fields.get("scope_id")
    if not isinstance(scope, str):
        raise ValueError("scope_id is not a text")
    pid = _integer(fields, "pid")
    signum = _integer(fields, "signal")
    if not 0 < pid <= HIGHEST_PID:
        raise ValueError("pid is none")
    if signum > 0 and signum not in signals.valid_signals():
        raise ValueError("signal is none")
    return FileTimerRequest(pid, scope, _seconds(fields.get("expiration_time")), signum)


def _integer(fields: dict[str, object], name: str) -> int:
    value = fields.get(name)
    # bool is an int to Python, not to us.
    if type(value) is not int:
        raise ValueError(f"{name} is not a whole number")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(NAN_MESSAGE)
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except OverflowError as error:
        raise ValueError(NAN_MESSAGE) from error
    if math.isnan(seconds):
        raise ValueError(NAN_MESSAGE)
    return seconds
