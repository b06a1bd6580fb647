"""What a dead agentd left behind: found by what its journal and its hosts wrote, ended, and proven gone."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentd.api.types import TERMINAL
from agentd.groups import layout, reported
from agentd.groups.journal import open_for_reading
from agentd.groups.records import GroupRow
from agentd.groups.stuck import StuckGroup
from agentd.groups.unknown import find_unknown
from agentd.procs import cgroups, tree
from agentd.procs.identity import boot_id, identify
from agentd.quickdata import dataclass

GRACE_S = 10.0
"""From SIGTERM to SIGKILL for what is left. Hosts pass it on to their workers."""

SECOND_LOOK_S = 0.5
"""How long SIGKILL may take for what got it before."""

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Leftover:
    """A worker group of a dead agentd that still had processes."""

    run_id: str
    incarnation: int
    role: str
    pids: tuple[int, ...]
    """What was found and ended."""
    left: StuckGroup | None = None
    """What SIGKILL did not end."""

    @property
    def stuck(self) -> tuple[int, ...]:
        """The pids of what SIGKILL did not end."""
        return tuple(process.pid for process in self.left.processes) if self.left else ()


def has_journal(state_dir: str) -> bool:
    """Whether any agentd has ever kept its state there."""
    return Path(state_dir, layout.DATABASE).exists()


def reap(state_dir: str, grace_s: float = GRACE_S) -> tuple[Leftover, ...]:
    """End what a dead agentd of this state directory left. Its lock must be held, or no agentd be there."""
    if not has_journal(state_dir):
        return ()
    groups = open_for_reading(Path(state_dir, layout.DATABASE)).groups
    return end_leftovers([*groups, *find_unknown(groups, state_dir)], grace_s)


def end_leftovers(groups: Iterable[GroupRow], grace_s: float) -> tuple[Leftover, ...]:
    """End what is left of these groups, several at a time. Waits for it: use a thread."""
    this_boot = [row for row in groups if row.token and row.boot_id == boot_id()]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="agentd-reap") as pool:
        found = list(pool.map(lambda row: _end_one(row, grace_s), this_boot))
    return tuple(leftover for leftover in found if leftover is not None)


def _end_one(row: GroupRow, grace_s: float) -> Leftover | None:
    # The start time of the host bounds the search: nothing older can have its token. And only sessions whose
    # leader is still there, a zombie perhaps: the id of any other may be a stranger's now.
    sessions = frozenset(leader for leader in reported.sessions(row) if identify(leader.pid) == leader)
    cgroup = layout.cgroup_of(row.directory, row.token)
    marks = tree.Marks(token=row.token, sessions=sessions, cgroup=cgroup, not_before=row.host_start_time)
    pids = tuple(sorted(process.pid for process in tree.find(marks)))
    if not pids:
        cgroups.remove(cgroup)
        return None
    if row.phase in TERMINAL:
        # It was killed when the group ended: nobody waits for it once more.
        stuck = tree.end_group(marks, grace_s=0.0, kill_bound_s=SECOND_LOOK_S)
    else:
        stuck = tree.end_group(marks, grace_s=grace_s)
    left = StuckGroup(
        run_id=row.run_id, incarnation=row.incarnation, role=row.role, marks=marks, processes=stuck
    )
    return Leftover(row.run_id, row.incarnation, row.role, pids, left if stuck else None)
