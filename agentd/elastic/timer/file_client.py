"""A worker's side of the timer pipe: one open, one line, one close for each request, all of it bounded."""

from __future__ import annotations

import errno
import os
import select
import signal as signals
import stat
import time

from agentd.elastic.timer.api import TimerClient
from agentd.elastic.timer.wire import FileTimerRequest
from agentd.procs.stack_signal import answer_from_environment

__all__ = ["FileTimerClient"]

TRIES = 10
PAUSE_S = 0.1


class FileTimerClient(TimerClient):
    """Sets timers with the `FileTimerServer` (or torch's) that made the named pipe `file_path`.

    `signal`: what this process gets when a timer runs out; 0 or less only makes the server tell of it.

    A server that is not there, or does not read, is tried 10 times, 0.1 s apart; then BrokenPipeError. A
    request whose line is longer than PIPE_BUF (4096 bytes), which could be torn, is a RuntimeError.

    Where the agent asks for it (AGENTD_STACKS_SIGNAL), this process tells its stacks on that signal from now
    on, by faulthandler.
    """

    def __init__(self, file_path: str, signal: int = signals.SIGKILL) -> None:
        super().__init__()
        self._file_path = file_path
        self.signal = signal
        answer_from_environment(os.environ)

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set this process' timer `scope_id` to `expiration_time`, seconds since the epoch."""
        self._send_request(FileTimerRequest(os.getpid(), scope_id, expiration_time, int(self.signal)))

    def release(self, scope_id: str) -> None:
        """Take this process' timer back."""
        self._send_request(FileTimerRequest(os.getpid(), scope_id, -1, 0))

    def _send_request(self, request: FileTimerRequest) -> None:
        line = request.to_json().encode() + b"\n"
        if len(line) > select.PIPE_BUF:
            raise RuntimeError(
                f"a timer request of {len(line)} bytes; at most {select.PIPE_BUF} are written in one piece. "
                f"Give it a shorter scope than {request.scope_id[:40]!r}..."
            )
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_S)
            try:
                self._write(line)
                return
            except OSError as error:
                problem = _explain(error)
        raise BrokenPipeError(
            errno.EPIPE, f"the timer server took no request in {TRIES} tries: {problem}", self._file_path
        )

    def _write(self, line: bytes) -> None:
        fd = os.open(self._file_path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                raise OSError(errno.ENOTSUP, "it is no named pipe")
            os.write(fd, line)
        finally:
            os.close(fd)


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no pipe"
    if error.errno == errno.ENXIO:
        return "nobody reads the pipe"
    if error.errno == errno.EAGAIN:
        return "the pipe is full"
    return error.strerror or str(error)
