"""Sends this process' own stdout or stderr to a file, of C code and children, too."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from functools import partial

__all__ = ["redirect", "redirect_stderr", "redirect_stdout"]

_FDS = {"stdout": 1, "stderr": 2}
_ABOVE_STD = 3


@contextlib.contextmanager
def redirect(std: str, to_file: str) -> Iterator[None]:
    """Within the context, descriptor 1 (`std` is `"stdout"`) or 2 (`"stderr"`) is `to_file`, emptied.

    Buffers of Python and of C are written out before and after. A `sys.stdout` that does not write to the
    descriptor is left alone. Raises `ValueError` for another name, `OSError` when the file cannot be opened.
    """
    if std not in _FDS:
        raise ValueError(f"{std!r} is no output stream: give one of {', '.join(map(repr, _FDS))}")
    fd = _FDS[std]
    file = _opened(to_file)
    try:
        saved = _saved(fd)
        _flush(std)
        os.dup2(file, fd)
    finally:
        os.close(file)
    try:
        yield
    finally:
        _flush(std)
        _restore(fd, saved)


redirect_stdout = partial(redirect, "stdout")
"""`redirect("stdout", file)`"""
redirect_stderr = partial(redirect, "stderr")
"""`redirect("stderr", file)`"""


def _opened(path: str) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        # Where the process was started without some of the first three, the file must not become one of them.
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STD)
    finally:
        os.close(fd)


def _saved(fd: int) -> int | None:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STD)
    except OSError:
        return None


def _restore(fd: int, saved: int | None) -> None:
    if saved is None:
        os.close(fd)
        return
    os.dup2(saved, fd)
    os.close(saved)


def _flush(std: str) -> None:
    import ctypes

    stream = getattr(sys, std)
    if stream is not None:
        # What cannot be written here would be lost anyway; the descriptor must be restored.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
