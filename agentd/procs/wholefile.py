"""A small file that others read at any moment: all of its new content is there, or all of the old."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SUFFIX = ".new"
"""Of the name it is written under. The folder is ours alone: nobody else puts something there."""


def write_whole(path: str, content: bytes, *, mode: int = 0o600, sync: bool = False) -> None:
    """Have `content` at `path`. Raises `OSError`; then what was there stays, and nothing beside it.

    `sync`: it survives a power cut.
    """
    partial = f"{path}{SUFFIX}"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            _write(fd, content)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        Path(partial).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        raise


def _write(fd: int, content: bytes) -> None:
    """A disk that becomes full takes a part first, and says so when it gets the rest."""
    while content:
        content = content[os.write(fd, content) :]
