"""Where a group lies: `runs/<run_id>/<incarnation>/<role>/` of the state directory, and where its logs do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from agentd.host.wire import HostSpec
from agentd.procs import cgroups
from agentd.procs.resources import SHORTAGES
from agentd.procs.wholefile import write_whole

DATABASE = "agentd.db"
RUNS = "runs"
SPEC_FILE = "spec.json"

_PRIVATE = 0o700


def group_dir(state_dir: str, run_id: str, incarnation: int, role: str) -> str:
    """The folder of one worker group."""
    return f"{state_dir}/{RUNS}/{run_id}/{incarnation}/{role}"


def log_root(state_dir: str, log_dir: str, run_id: str, incarnation: int, role: str) -> str:
    """Where the rounds' log folders of a group go."""
    if not log_dir:
        return group_dir(state_dir, run_id, incarnation, role)
    return f"{log_dir.rstrip('/')}/{run_id}/{incarnation}/{role}"


def prepare(spec: HostSpec, folder: str) -> None:
    """Make a group's folders, for agentd's user only, and leave its spec there. Touches the disk."""
    for path in (folder, spec.log_root):
        _make_private(Path(path))
    target = Path(folder, SPEC_FILE)
    try:
        write_whole(str(target), json.dumps(asdict(spec), default=dict, indent=1).encode() + b"\n")
    except OSError as error:
        # That of the group's former host says the same but for what is the host's own.
        if error.errno not in SHORTAGES or not target.exists():
            raise


def cgroup_of(folder: str, token: str) -> str:
    """The cgroup of the group's host of that token, if its spec names one. Touches the disk."""
    try:
        spec = json.loads(Path(folder, SPEC_FILE).read_bytes())
        cgroup = spec["cgroup"] if spec["token"] == token else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    # All in there is killed: a folder of any other name may be a stranger's.
    ours = isinstance(cgroup, str) and token and Path(cgroup).name == cgroups.name_of(token)
    return cgroup if ours else ""


def _make_private(path: Path) -> None:
    """As `mkdir -p -m 700`, for every folder that is new; the umask may be wider than logs should be."""
    if path.is_dir():
        return
    _make_private(path.parent)
    path.mkdir(mode=_PRIVATE, exist_ok=True)
