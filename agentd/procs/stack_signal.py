"""A signal on which a Python process writes down its stacks, and how another process reads them.

The process that can be asked keeps a file in memory, a memfd whose name tells the signal. Whoever may signal
it finds that file among its descriptors, opens it there, sends the signal and reads. There is no path to
agree on, nothing to remove, and a forked child can be asked as its parent can.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from agentd.procs import kernel_view
from agentd.procs.procfs import PROC

__all__ = ["SIGNAL_VARIABLE", "StackSheet", "answer_from_environment", "default_signal", "open_sheet"]

SIGNAL_VARIABLE = "AGENTD_STACKS_SIGNAL"
"""Number of the signal; in the environment of processes that shall answer."""
SHEET_NAME = "agentd-stacks"
MOST_DESCRIPTORS = 4096
"""How many of a process are looked through; the file is made early and has a low number."""
MOST_BYTES = 1 << 20

log = logging.getLogger(__name__)

_sheet: int | None = None  # kept open for as long as the handler may write


def default_signal() -> int:
    """A real-time signal that neither the C library nor common programs use."""
    return signal.SIGRTMIN + 13


def answer_from_environment(environ: Mapping[str, str]) -> bool:
    """Answer from now on, if AGENTD_STACKS_SIGNAL asks for it; tells whether this process does.

    Never raises, and never takes a signal that this process already handles.
    """
    text = environ.get(SIGNAL_VARIABLE, "")
    if _sheet is not None:
        return True
    if not text.isdigit():
        return False
    try:
        return _answer(int(text))
    except (OSError, ValueError, RuntimeError) as error:
        log.warning("this process will not tell its stacks on signal %s: %s", text, error)
        return False


def _answer(signum: int) -> bool:
    global _sheet
    # Late: only a worker needs it.
    import faulthandler

    if kernel_view.catches(os.getpid(), signum):
        log.warning("this process will not tell its stacks: it handles signal %d itself", signum)
        return False
    fd = os.memfd_create(f"{SHEET_NAME}-{signum}")
    try:
        faulthandler.register(signum, file=fd, all_threads=True, chain=False)
    except BaseException:
        os.close(fd)
        raise
    _sheet = fd
    return True


class StackSheet:
    """The file of one process that can be asked, and the signal that asks. The caller closes it."""

    def __init__(self, pid: int, fd: int, signum: int) -> None:
        self.signum = signum
        self._pid = pid
        self._fd = fd
        self._start = os.fstat(fd).st_size
        # Some threads block all signals for good: only those that begin to do so run the handler.
        self._blocking = kernel_view.threads_blocking(pid, signum)

    def is_written(self) -> bool:
        """Whether the process has answered, and its handler has come to its end."""
        if os.fstat(self._fd).st_size <= self._start or kernel_view.is_pending(self._pid, self.signum):
            return False
        return kernel_view.threads_blocking(self._pid, self.signum) <= self._blocking

    def read(self) -> str:
        """What was written since it was opened."""
        return os.pread(self._fd, MOST_BYTES, self._start).decode(errors="replace")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


def open_sheet(pid: int) -> StackSheet | None:
    """The file of a process that can be asked; `None` if it cannot, or may not be looked into."""
    folder = f"{PROC}/{pid}/fd"
    try:
        numbers = sorted(map(int, os.listdir(folder)))[:MOST_DESCRIPTORS]
    except OSError:
        return None
    for number in numbers:
        with contextlib.suppress(OSError):
            signum = _signal_of(str(Path(folder, str(number)).readlink()))
            if signum and kernel_view.catches(pid, signum):
                return StackSheet(pid, os.open(f"{folder}/{number}", os.O_RDONLY | os.O_CLOEXEC), signum)
    return None


def _signal_of(link: str) -> int:
    """The signal a descriptor's name tells; 0 if it is something else."""
    prefix = f"/memfd:{SHEET_NAME}-"
    number = link[len(prefix) :].partition(" ")[0] if link.startswith(prefix) else ""
    return int(number) if number.isdigit() and 0 < int(number) <= 64 else 0
