"""Ends a process group with this process, whatever kills it: a pipe that hangs up when this process is gone.

The parent-death signal reaches only the process that was started. What that one started would live on.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

ABOVE_SCRIPTS = 10
"""Lower numbers are those that shell scripts give to their own files."""

_ours: set[int] = set()


def _drop_ours() -> None:
    if not _ours:
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in _ours:
        # Not closed: the number would be reused under the object that owns it.
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


# Workers live as long as anybody holds their lifeline: no process that this one happens to fork may.
os.register_at_fork(after_in_child=_drop_ours)


class Lifeline:
    """Two ends of a pipe: `theirs` goes to a new process, the other one is held here until `close`.

    As a context: `theirs` is closed here at its end, and all of it if it ends by an exception.
    """

    def __init__(self) -> None:
        theirs, self._held = os.pipe2(os.O_CLOEXEC)
        _ours.add(self._held)
        try:
            self.theirs = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, ABOVE_SCRIPTS)
            """What the process must keep open."""
        except OSError:
            self.close()
            raise
        finally:
            os.close(theirs)

    def tie(self, group: int, signum: int) -> None:
        """Have the kernel send this process group `signum` when the last holder of our end is gone."""
        fcntl.fcntl(self.theirs, fcntl.F_SETSIG, signum)  # type: ignore[attr-defined, unused-ignore]
        fcntl.fcntl(self.theirs, fcntl.F_SETOWN, -group)
        fcntl.fcntl(self.theirs, fcntl.F_SETFL, fcntl.fcntl(self.theirs, fcntl.F_GETFL) | os.O_ASYNC)

    def close(self) -> None:
        """Hold it no longer: whoever still lives by it dies. Harmless when repeated."""
        if self._held >= 0:
            _ours.discard(self._held)
            fd, self._held = self._held, -1
            os.close(fd)

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.theirs)
        if kind is not None:
            self.close()
