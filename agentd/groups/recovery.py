"""What an earlier agentd of this state directory knew, made fit for the next. Touches the disk.

Groups of live runs go on where they are, with their hosts and workers; what is left of all others is ended.
"""

from __future__ import annotations

from agentd.api.types import TERMINAL, RunRequest
from agentd.groups import left
from agentd.groups.left import LeftGroup
from agentd.groups.logs import WorkerLog
from agentd.groups.reap import GRACE_S, end_leftovers
from agentd.groups.records import GroupRow, RunRow
from agentd.groups.remembered import Remembered
from agentd.groups.reported import logs_on_disk
from agentd.groups.stuck import StuckGroup
from agentd.groups.unknown import find_unknown
from agentd.procs import cgroups, tree
from agentd.procs.identity import boot_id
from agentd.quickdata import dataclass

SHOWN_RUNS = 256
"""Ended runs that are shown again, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerRun:
    """A run an earlier agentd had."""

    row: RunRow
    logs: tuple[WorkerLog, ...]
    hub_record: str
    """What its hub had announced, if that was here."""
    groups: tuple[LeftGroup, ...] = ()
    """Those that go on where they are."""
    lost: tuple[str, ...] = ()
    """Roles whose groups had begun here and cannot go on."""
    roles: frozenset[str] = frozenset()
    """All of the node's part, begun or not."""
    rebooted: bool = False
    """Whether the machine was started again since."""

    @property
    def what_happened(self) -> str:
        """Why it does not simply go on."""
        return "the machine was started again" if self.rebooted else "its agentd ended"

    def end(self) -> None:
        """End the groups that could have gone on. Waits for it: use a thread."""
        for group in self.groups:
            marks = tree.Marks(token=group.spec.token, sessions=group.sessions, cgroup=group.spec.cgroup)
            tree.end_group(marks, grace_s=GRACE_S)

    def has_others(self, node_id: str) -> bool:
        """Whether a node besides this one has, or is to have, a part in it, as far as was known here."""
        return len(self.row.spec.nodes) > 1 or any(node.node_id != node_id for node in self.row.status.nodes)

    @property
    def request(self) -> RunRequest:
        """The request that takes part in it again."""
        row = self.row
        return RunRequest(
            request_id=row.request_id,
            spec=row.spec,
            incarnation=row.incarnation,
            hub_address=row.hub_address,
            node_name=row.node_name,
            passed_env=row.passed_env,
            # A node that joined later is not in the list; one that is only the hub stays only that.
            join=bool(row.hub_address or row.node_name or not row.spec.nodes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LookBack:
    """The runs of an earlier agentd, oldest first."""

    ended: tuple[FormerRun, ...]
    live: tuple[FormerRun, ...]
    stuck: tuple[StuckGroup, ...] = ()
    """What SIGKILL did not end."""


def look_back(remembered: Remembered, state_dir: str) -> LookBack:
    """Find the groups that can go on, end what is left of the others, and sort the runs."""
    live_keys = {(row.run_id, row.incarnation) for row in remembered.runs if not row.ended}
    unknown = find_unknown([row for row in remembered.groups if _key(row) in live_keys], state_dir)
    begin_again = {row.key() for row in unknown}
    leftovers = end_leftovers(unknown, GRACE_S)
    found = {
        row.key(): left.find(row, begin_again=row.key() in begin_again)
        for row in remembered.groups
        if _key(row) in live_keys
    }
    cgroups.clear()
    over = [row for row in remembered.groups if found.get(row.key()) is None]
    # What could not be ended of a group that is shown as lost may be there still.
    lost = [row for row in remembered.groups if row.phase in TERMINAL and found.get(row.key()) is not None]
    leftovers += end_leftovers([*over, *lost], GRACE_S)
    stuck = tuple(each.left for each in leftovers if each.left is not None)
    rows = sorted(remembered.runs, key=lambda row: row.incarnation)
    ended = [row for row in rows if row.ended][-SHOWN_RUNS:]
    live = [row for row in rows if not row.ended]
    records = {(hub.run_id, hub.incarnation): hub.record for hub in remembered.hubs}

    def former(row: RunRow) -> FormerRun:
        groups = [group for group in remembered.groups if _key(group) == (row.run_id, row.incarnation)]
        over = [group for group in groups if found.get(group.key()) is None]
        return FormerRun(
            row=row,
            logs=tuple(log for group in over for log in logs_on_disk(group)),
            hub_record=records.get((row.run_id, row.incarnation), ""),
            groups=tuple(each for group in groups if (each := found.get(group.key())) is not None),
            lost=tuple(group.role for group in over if group.token),
            roles=frozenset(group.role for group in groups),
            rebooted=any(group.token and group.boot_id != boot_id() for group in groups),
        )

    return LookBack(ended=tuple(map(former, ended)), live=tuple(map(former, live)), stuck=stuck)


def _key(row: GroupRow) -> tuple[str, int]:
    return row.run_id, row.incarnation
