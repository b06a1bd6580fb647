"""What /proc tells of this process as its arguments and its environment, changed in place.

Both lie in its own memory where the kernel put them at the start, and /proc reads them there: other processes
see the change, an exec forgets it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_ARGUMENTS = slice(45, 47)
_ENVIRONMENT = slice(47, 49)
"""Where /proc/self/stat has the first and the last address, counted behind the name."""


def show_arguments(words: Sequence[str]) -> None:
    """Be seen with this command line, cut where the first one ended. Raises `OSError`."""
    first, last = _area(_ARGUMENTS)
    text = b"".join(os.fsencode(word) + b"\0" for word in words)
    _write(first, text[: last - first - 1].ljust(last - first, b"\0"))


def show_variable(name: str, value: str) -> None:
    """Be seen with this value of a variable that had one as long, and set it.

    Raises `OSError`, and `ValueError` for one of another length or not there from the start.
    """
    first, last = _area(_ENVIRONMENT)
    former = os.fsencode(f"\0{name}={os.environ[name]}\0")
    wanted = os.fsencode(f"\0{name}={value}\0")
    if len(former) != len(wanted):
        raise ValueError(f"{name} has another length")
    # One byte more in front: the first variable follows the arguments' end.
    place = _read(first - 1, last - first + 1).find(former)
    if place < 0:
        raise ValueError(f"{name} is not in the environment that this process was started with")
    _write(first - 1 + place, wanted)
    os.environ[name] = value


def _area(which: slice) -> tuple[int, int]:
    line = Path("/proc/self/stat").read_bytes()
    first, last = map(int, line[line.rindex(b")") + 2 :].split()[which])
    return first, last


def _read(address: int, size: int) -> bytes:
    fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)


def _write(address: int, data: bytes) -> None:
    fd = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)
