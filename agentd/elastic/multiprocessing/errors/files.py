"""Writes a small file so that no reader ever sees half of it."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path


def replace_file(path: str, data: bytes) -> None:
    """Put `data` at `path` in one step, making its folder if that is missing.

    What cannot be replaced (a device, a mounted file, a file in a folder that may not be written) is written
    over instead. Raises `OSError`, or `ValueError` for a path no file can have.
    """
    target = os.path.realpath(path)  # a link keeps pointing where it did
    if not _is_replaceable(target):
        _write(target, data, os.O_TRUNC | os.O_NONBLOCK)
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(target, data)
    except OSError:
        if not Path(target).exists():
            raise
        _write(target, data, os.O_TRUNC)


def _is_replaceable(target: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(target).st_mode)
    except FileNotFoundError:
        return True


def _replace(target: str, data: bytes) -> None:
    temporary = f"{target}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        _write(temporary, data, os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
        Path(temporary).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _write(path: str, data: bytes, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
