"""What a host writes to its standard error: little, unless it cannot go on."""

from __future__ import annotations

import os

HOST_LOG = "host.log"
"""In the folder of its group; one host after the other writes there."""

_TAIL = 4096
_SHOWN = 300


def last_line(group_dir: str) -> str:
    """The last words of a host that ended by itself, such as those of a traceback. Raises `OSError`."""
    with open(f"{group_dir}/{HOST_LOG}", "rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - _TAIL))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip()[:_SHOWN] for line in reversed(lines) if line.strip()), "")
