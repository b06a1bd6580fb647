"""A cgroup for each worker group, where agentd may make one: nothing leaves it unasked, one write ends all.

Version 2 only. It lies below agentd's own cgroup, which must be agentd's to divide: delegated to it by
systemd (Delegate=yes), or, where no systemd rules, simply writable. agentd itself is never moved, and no
controller is touched, so that its own cgroup may hold processes and cgroups alike.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PREFIX = "agentd-"
KILL_FILE = "cgroup.kill"
"""Since Linux 5.14; without it a cgroup still tells who is in it."""

_MEMBERS = "cgroup.procs"
PROC = "/proc"
SYSTEMD = "/run/systemd/system"
"""There while systemd rules the machine."""
_DELEGATED = ("user.delegate", "trusted.delegate")
_TOKEN_PART = 16
YOUNG_S = 60.0
"""Somebody may be about to enter an empty cgroup of that age in seconds."""


def make(token: str) -> str:
    """A new, empty cgroup for the group of that token, as a folder; empty where agentd may make none."""
    home = own_home()
    if home is None:
        return ""
    folder = Path(home, name_of(token))
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return ""
    return str(folder)


def name_of(token: str) -> str:
    """What the folder is called. As random as the token: nobody else's has that name."""
    return f"{PREFIX}{token[:_TOKEN_PART]}"


def enter(folder: str, pid: int) -> bool:
    """Put a process there; what it starts from now on is there as well. Tells whether it is there."""
    return bool(folder) and _write(folder, _MEMBERS, str(pid))


def members(folder: str) -> set[int]:
    """The processes in it and in all cgroups below, zombies too."""
    found: set[int] = set()
    if not folder:
        return found
    for path in Path(folder).glob(f"**/{_MEMBERS}"):
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in path.read_text(encoding="ascii").split())
    return found


def kill(folder: str) -> bool:
    """SIGKILL to everything in it at once, so that no fork escapes. Never if the caller is in there."""
    if not folder or os.getpid() in members(folder):
        return False
    return _write(folder, KILL_FILE, "1")


def remove(folder: str) -> bool:
    """Remove it and what was made below it. Tells whether it is gone: not while a process is there."""
    if not folder:
        return True
    below = sorted((path for path in Path(folder).glob("**/") if path.is_dir()), reverse=True)
    for path in below:
        with contextlib.suppress(OSError):
            path.rmdir()
    return not Path(folder).exists()


def clear() -> None:
    """Remove what agentds that died too early have left empty. Whatever holds a process stays.

    Its age goes by the time of day, the only one the kernel tells. A clock that jumped costs no process: one
    that finds its cgroup gone does without, see `enter`.
    """
    home = own_home()
    for folder in home.glob(f"{PREFIX}*") if home is not None else ():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_ctime > YOUNG_S and not members(str(folder)):
                remove(str(folder))


def own_home() -> Path | None:
    """This process' own cgroup as a folder, if new ones may be made in it."""
    folder = folder_of("self")
    if folder is None or not os.access(folder, os.W_OK) or not os.access(folder / _MEMBERS, os.W_OK):
        return None
    if Path(SYSTEMD).is_dir() and not _is_delegated(folder):
        return None
    return folder


def folder_of(pid: int | str) -> Path | None:
    """The version 2 cgroup of a process as a folder; `None` where it cannot be seen."""
    path = next((line[3:] for line in _lines(f"{PROC}/{pid}/cgroup") if line.startswith("0::")), "")
    if not path:
        # The process is gone, or is in none that can be seen.
        return None
    for line in _lines(f"{PROC}/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        words = fields.split(" ")
        if kind.startswith("cgroup2 ") and len(words) > 4:
            root, where = words[3:5]
            relative = os.path.relpath(path, root)
            folder = Path(where, relative)
            # Outside of what is mounted here, or deleted.
            if not relative.startswith("..") and folder.is_dir():
                return folder
    return None


def _is_delegated(folder: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _write(folder: str, name: str, text: str) -> bool:
    try:
        fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
