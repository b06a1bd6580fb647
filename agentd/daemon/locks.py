"""Lock files: a second daemon is refused while the first lives, and only then.

The kernel drops a lock with its process, so nothing stale can be left by `kill -9`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from agentd.daemon.exits import AlreadyRunning

FILE_NAME = "agentd.lock"
"""In a state directory."""


class FileLock:
    """An exclusive lock on a file that names its holder's pid. Held until `release`."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def acquire(cls, path: str, what: str) -> FileLock:
        """Lock `path`. Raises `AlreadyRunning` saying that `what` is in use, and by whom."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_still_at(path, fd):
                    # Its former holder removed it between our open and our lock.
                    os.close(fd)
                    continue
                # A full disk keeps no pid: then it is not known who has the lock, but nobody else gets it.
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return cls(path, fd)
            except BlockingIOError:
                pid = _holder(fd)
                os.close(fd)
                raise AlreadyRunning(what, pid) from None
            except BaseException:
                os.close(fd)
                raise

    def release(self) -> None:
        """Unlock and remove the file. A second call does nothing."""
        if self._fd < 0:
            return
        # Removed while still locked: whoever waits on the old file sees that it is gone.
        if _is_still_at(self.path, self._fd):
            with contextlib.suppress(OSError):  # a disk that is read-only by now
                Path(self.path).unlink()
        os.close(self._fd)
        self._fd = -1


@contextlib.contextmanager
def folder_locked(path: str, what: str) -> Iterator[bool]:
    """Lock a folder itself while the block runs; False: its file system has no such locks.

    Raises `AlreadyRunning`, and `OSError` if it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            raise AlreadyRunning(what, _holder_of(os.path.join(path, FILE_NAME))) from None
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(fd)


def _holder_of(lock_file: str) -> int | None:
    try:
        fd = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _is_still_at(path: str, fd: int) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _holder(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
