"""The named pipe of a timer server: made, owned, read without ever blocking, and removed again.

Opened for reading and writing, so that it neither waits for a first client nor spins after the last. A lock
on it tells a pipe that somebody serves from one that a dead agent left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

__all__ = ["TimerPipe", "TimerPipeError"]

READ_BYTES = 1 << 16
"""What a pipe holds."""
MOST_READS = 16
"""In one go: whoever floods the pipe must not keep the reader from its other work."""


class TimerPipeError(OSError):
    """The named pipe cannot be made at `path`, for what `problem` says."""

    def __init__(self, number: int, path: str, problem: str) -> None:
        super().__init__(number, problem, path)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"cannot make the timer pipe {self.path}: {self.problem}. "
            "Give another path (TORCHELASTIC_TIMER_FILE), or none to have one made"
        )


class TimerPipe:
    """A FIFO of ours at `path`; one that a dead server left is replaced. Raises `TimerPipeError`."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            _remove_stale(path)
            os.mkfifo(path, 0o600)
            self._fd = _open_locked(path)
        except TimerPipeError:
            raise
        except OSError as error:
            number = error.errno or errno.EIO
            raise TimerPipeError(number, path, os.strerror(number)) from error
        self._mark = os.fstat(self._fd)

    def fileno(self) -> int:
        """Readable when a request waits; -1 once closed."""
        return self._fd

    def read(self) -> bytes:
        """What waits in the pipe, up to a megabyte of it."""
        parts: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(parts) < MOST_READS and self._fd >= 0:
                parts.append(os.read(self._fd, READ_BYTES))
        return b"".join(parts)

    def close(self) -> None:
        """Close it, and remove the path if it still is this pipe's. Harmless when repeated."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self.path), self._mark):
                Path(self.path).unlink()
        # A forked child may hold the descriptor, and the lock with it.
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = -1


def _remove_stale(path: str) -> None:
    """Remove the pipe of a dead server; anything else at the path is an error, never touched."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISFIFO(found.st_mode):
        raise TimerPipeError(errno.EEXIST, path, "something is there that is no named pipe")
    if found.st_uid != os.geteuid():
        raise TimerPipeError(errno.EPERM, path, "the pipe that is there belongs to another user")
    fd = _open_locked(path)
    Path(path).unlink()
    os.close(fd)


def _open_locked(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        problem = "the timer server of another agent uses it"
        raise TimerPipeError(errno.EADDRINUSE, path, problem) from error
    return fd
