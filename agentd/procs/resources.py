"""What is left of what runs out: room on a disk, descriptors. `disk_facts` may wait for the disk."""

from __future__ import annotations

import contextlib
import errno
import os

from agentd.core.conditions import DiskFacts

SHORTAGES = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.EAGAIN,
        errno.ENOMEM,
    }
)
"""What passes without anybody changing the run: worth another try."""
OUT_OF_PROCESSES = frozenset({errno.EAGAIN, errno.ENOMEM})
"""What the kernel says when it starts no process or thread."""
HEADROOM = 8
"""With fewer descriptors left nothing new can be begun."""


def disk_facts(directory: str) -> DiskFacts:
    """The file system that holds `directory`. Raises `OSError`."""
    found = os.statvfs(directory)
    return DiskFacts(
        total=found.f_blocks * found.f_frsize,
        # Root may write what is kept for it.
        free=(found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize,
        inodes=found.f_files,
        inodes_free=found.f_favail if os.geteuid() else found.f_ffree,
        read_only=bool(found.f_flag & os.ST_RDONLY),
    )


def missing_descriptors() -> str:
    """Why there are not `HEADROOM` descriptors more to be had; empty: there are."""
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(HEADROOM):
                stack.callback(os.close, os.open("/", os.O_PATH | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EMFILE:
                return f"agentd has {_limit()} files open, its limit"
            return f"the machine has no file to open left ({error.strerror})"
    return ""


def can_start_thread() -> bool:
    """Whether the kernel gives a thread, which counts as a process does."""
    import threading

    thread = threading.Thread(target=int, name="agentd-probe", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return False
    thread.join()
    return True


def _limit() -> str:
    import resource

    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
