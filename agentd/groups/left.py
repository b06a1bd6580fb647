"""A worker group of a dead agentd, as its journal and its folder tell it: what the next one goes on with.

A group is taken over whole, with its host and its workers, or not at all. Touches the disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agentd.api.types import TERMINAL, Phase
from agentd.core.group import GroupState, HostState
from agentd.groups import layout, reported
from agentd.groups.logs import WorkerLog
from agentd.groups.records import GroupRow
from agentd.host.reports import read_reports
from agentd.host.shaped import ShapeError, build, plain
from agentd.host.wire import HostSpec, ReportFrame, Started
from agentd.hub.messages import MemberCondition, MemberState
from agentd.procs import tree
from agentd.procs.identity import ProcessIdentity, boot_id, identify
from agentd.quickdata import dataclass

KEEP = "keep"
"""The mode of hosts that outlive their agentd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftGroup:
    """All that a supervisor needs to go on where another one was."""

    spec: HostSpec
    """As its newest host was told it."""
    state: GroupState
    member: MemberState | None
    """What the hub is told of it before it says anything itself; None: nothing."""
    restart_count: int
    """Of the run, as the newest place of its workers said."""
    sequence: int
    """The last report of a host that `state` knows of."""
    host: ProcessIdentity | None
    """Alive or not."""
    sessions: frozenset[ProcessIdentity]
    """Of its workers, whose leaders are still there."""
    logs: tuple[WorkerLog, ...]
    """Of the workers `state` knows of, and of earlier ones."""


def state_text(state: GroupState) -> str:
    """A group's state for the journal."""
    return json.dumps(state, default=plain, separators=(",", ":"))


def find(row: GroupRow, *, begin_again: bool = False) -> LeftGroup | None:
    """The group of a journal's row, if it can go on where it was. None: what is left of it is to be ended.

    `begin_again`: it had a host that the row does not know and that is ended, so that it needs another one.
    """
    if not row.state or row.boot_id != boot_id():
        return None
    try:
        state: GroupState = build(GroupState, json.loads(row.state), "state")
        spec: HostSpec = build(HostSpec, _spec_on_disk(row.directory), "spec")
        unread = read_reports(row.directory, row.sequence)
    except (ShapeError, ValueError, RecursionError, OSError):
        return None
    if spec.mode != KEEP or spec.role != state.role:
        return None
    if begin_again and state.phase not in TERMINAL:
        row = replace(row, sequence=max((report.sequence for report in unread), default=row.sequence))
        newest = max((each.round for each in unread if isinstance(each, Started)), default=0)
        state, unread = without_host(state, newest), ()
    elif not _was_heard(row, state, unread):
        # Nothing of it runs, and nothing of that is its fault: another host is started at once.
        cgroup = layout.cgroup_of(row.directory, row.token)
        marks = tree.Marks(token=row.token, cgroup=cgroup, not_before=row.host_start_time)
        tree.end_group(marks, grace_s=0.0)
        state = replace(state, host=HostState.NONE, host_pid=0)
    return LeftGroup(
        spec=replace(spec, token=row.token, cgroup=layout.cgroup_of(row.directory, row.token)),
        state=state,
        member=as_member(state, unread),
        restart_count=reported.restart_count(row),
        sequence=row.sequence,
        host=ProcessIdentity(row.host_pid, row.host_start_time) if row.host_pid else None,
        sessions=frozenset(leader for leader in reported.sessions(row) if identify(leader.pid) == leader),
        logs=tuple(reported.logs_on_disk(row, up_to=row.sequence)),
    )


def as_member(state: GroupState, unread: Sequence[ReportFrame] = ()) -> MemberState | None:
    """What the hub is told of the group before it says anything itself; None: nothing.

    `unread`: what its host reported since. Workers may run that a slow disk kept from the journal: whoever
    says nothing of them is taken for one that runs nothing.
    """
    heard = unread if state.host is HostState.LIVE else ()
    newest = max((report.round for report in heard if isinstance(report, Started)), default=0)
    if state.phase in TERMINAL or not (newest or state.round or state.awaiting_place):
        return None
    if newest > state.round:
        condition = MemberCondition.RUNNING
    elif state.round <= state.gone_round:
        condition = MemberCondition.JOINING
    else:
        condition = MemberCondition.DONE if state.phase is Phase.DONE else MemberCondition.RUNNING
    return MemberState(
        role=state.role,
        local_world_size=state.local_world_size,
        condition=condition,
        round=max(newest, state.round),
    )


def without_host(state: GroupState, newest: int) -> GroupState:
    """A group of which nothing runs, of no round up to the `newest`. What was asked of it stands."""
    round_ = max(newest, state.round)
    return GroupState(
        role=state.role,
        local_world_size=state.local_world_size,
        stop_grace=state.stop_grace,
        round=round_,
        gone_round=round_,
        stopped_round=round_,
        reason=state.reason,
        ending=state.ending,
    )


def _was_heard(row: GroupRow, state: GroupState, unread: Sequence[ReportFrame]) -> bool:
    if state.host is not HostState.LIVE or state.host_heard:
        return True
    return bool(row.host_pid and unread)


def _spec_on_disk(directory: str) -> Mapping[str, object]:
    found = json.loads(Path(directory, layout.SPEC_FILE).read_bytes())
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
