"""Files whose beginning was given back to the disk: made with fallocate(2), seen with lseek(2).

What is removed leaves a hole: the file keeps its size, all that follows keeps its offset, and whoever has it
open with O_APPEND goes on writing at its end.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

ALIGNMENT = 64 * 1024
"""A multiple of the block size of every common file system: a part of a block would be filled with zeros."""

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM})


def punch(fd: int, end: int) -> int:
    """Remove what lies before `end`, in whole blocks; answers how far that is. Raises `OSError`."""
    end -= end % ALIGNMENT
    if end > 0 and _fallocate()(fd, _PUNCH_HOLE | _KEEP_SIZE, 0, end) != 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "fallocate")
    return max(0, end)


def cannot_punch(error: OSError) -> bool:
    """Whether the file system has no holes, as against: it is broken or full."""
    return error.errno in _UNSUPPORTED


def first_data(fd: int, offset: int) -> int:
    """Where the first byte at or after `offset` stands that is in no hole; the file's end if there is none.

    Where nobody can tell holes it is `offset` itself.
    """
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return max(offset, os.fstat(fd).st_size)
        return offset


@functools.cache
def _fallocate() -> Callable[..., int]:
    # Late: ctypes costs time and memory.
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function
