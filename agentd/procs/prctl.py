"""The two process attributes that Python has no call for: the parent-death signal and the subreaper."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37


@functools.cache
def _prctl() -> Callable[..., int]:
    # Late: ctypes costs time and memory, and only a process that starts others needs it.
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    function.restype = ctypes.c_int
    return function


def load() -> None:
    """Do now what must not be done between fork and exec."""
    _prctl()


def _call(option: int, value: int) -> None:
    if _prctl()(option, value, 0, 0, 0) != 0:
        import ctypes

        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl")


def set_parent_death_signal(signum: int) -> None:
    """Get `signum` when the *thread* that started this process ends."""
    _call(PR_SET_PDEATHSIG, signum)


def become_subreaper(whether: bool = True) -> None:
    """Adopt every descendant whose parent dies, so that descent can be followed to this process; or cease."""
    _call(PR_SET_CHILD_SUBREAPER, int(whether))


def is_subreaper() -> bool:
    """Whether this process adopts what its descendants leave behind."""
    import ctypes

    answer = ctypes.c_int()
    _call(PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer))
    return bool(answer.value)
