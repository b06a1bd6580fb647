"""The uid of the agentds of one state directory: in a small file of its own, which outlives a lost journal.

A node that came back with another uid would be a stranger to the hubs of its runs.
"""

from __future__ import annotations

import logging
import re
import secrets
from pathlib import Path

from agentd.procs.wholefile import write_whole

FILE_NAME = "agent_uid"
"""In the state directory. It is the owner; the journal has a copy, for a file that was lost."""

_UID = re.compile("[0-9a-f]{32}")
_log = logging.getLogger(__name__)


def agent_uid(state_dir: Path, copy: str = "") -> str:
    """The uid of this state directory, made at the first start. Touches the disk.

    `copy`: as the journal has it. A disk that takes no file is no reason not to start.
    """
    path = state_dir / FILE_NAME
    try:
        found = path.read_bytes()[:64].decode("ascii", "replace").strip()
    except OSError:
        found = ""
    if _UID.fullmatch(found):
        return found
    uid = copy if _UID.fullmatch(copy) else secrets.token_hex(16)
    try:
        write_whole(str(path), f"{uid}\n".encode(), sync=True)
    except OSError as error:
        _log.warning("the node's uid is not on disk", extra={"path": str(path), "problem": str(error)})
    return uid
