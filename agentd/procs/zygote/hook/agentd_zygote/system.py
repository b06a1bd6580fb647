# ruff: noqa: PTH109, SIM105
"""What zygotes and workers ask of the system."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def fork() -> int:
    if tuple(sys.version_info) < (3, 12):
        return os.fork()
    import warnings

    # It counts threads that BLAS libraries know how to fork; what must not be forked was looked for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def reap(child: int) -> None:
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass  # an imported module has said that children are not waited for


def prctl(option: int, value: int | bytes) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def hang_up_ends_group(lifeline: int) -> None:
    """As `agentd.procs.lifeline` does it."""
    import fcntl
    import signal

    fcntl.fcntl(lifeline, fcntl.F_SETSIG, int(signal.SIGKILL))
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001 - a module may have put anything there
            pass


def close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def cwd() -> str:
    """Empty if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
