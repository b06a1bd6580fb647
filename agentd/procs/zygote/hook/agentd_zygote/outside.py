"""What /proc shows of a worker."""

from __future__ import annotations

import os

from agentd_zygote.system import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_MM, PR_SET_MM_MAP = 35, 14


def show_outside(environment: dict[str, str], argv: list[str]) -> None:
    """Have /proc/PID/environ, and cmdline if there is an `argv`, show what is the worker's, where one may."""
    import array
    import ctypes

    libc: Any = ctypes.CDLL(None)
    shown = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    words = b"".join(os.fsencode(word) + b"\0" for word in argv)
    libc.mmap.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    # Never given back: the kernel reads there for as long as the process lives.
    start = libc.mmap(None, len(shown + words) + 1, 3, 0x22, -1, 0)
    if start in (None, ctypes.c_void_p(-1).value):
        return
    ctypes.memmove(start, shown + words, len(shown + words))
    fields = [0, 0, *map(int, read("/proc/self/stat").rpartition(b") ")[2].split()[1:])]
    places = [fields[number - 2] for number in (26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51) if number]
    places.insert(5, libc.sbrk(0))
    places[9:11] = start, start + len(shown)
    if words:
        places[7:9] = start + len(shown), start + len(shown + words)
    known = array.array("Q", [*places, 0]).tobytes() + array.array("I", [0, 0xFFFFFFFF]).tobytes()
    libc.prctl(PR_SET_MM, PR_SET_MM_MAP, known, ctypes.c_ulong(len(known)), 0)
