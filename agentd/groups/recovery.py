"""What an earlier agentd of this state directory knew, made fit for the next. Touches the disk."""

from __future__ import annotations

from dataclasses import dataclass

from agentd.api.types import RunRequest
from agentd.groups.logs import WorkerLog
from agentd.groups.reap import GRACE_S, end_leftovers
from agentd.groups.records import RunRow
from agentd.groups.remembered import Remembered
from agentd.groups.reported import logs_on_disk

SHOWN_RUNS = 256
"""Ended runs that are shown again, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerRun:
    """A run an earlier agentd had."""

    row: RunRow
    logs: tuple[WorkerLog, ...]
    hub_record: str
    """What its hub had announced, if that was here."""

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
    """Nothing of them runs here any more."""


def look_back(remembered: Remembered) -> LookBack:
    """End what is left of the groups, and sort the runs."""
    end_leftovers(remembered.groups, GRACE_S)
    rows = sorted(remembered.runs, key=lambda row: row.incarnation)
    ended = [row for row in rows if row.ended][-SHOWN_RUNS:]
    live = [row for row in rows if not row.ended]
    records = {(hub.run_id, hub.incarnation): hub.record for hub in remembered.hubs}

    def former(row: RunRow) -> FormerRun:
        key = row.run_id, row.incarnation
        groups = [group for group in remembered.groups if (group.run_id, group.incarnation) == key]
        logs = tuple(log for group in groups for log in logs_on_disk(group))
        return FormerRun(row=row, logs=logs, hub_record=records.get(key, ""))

    return LookBack(ended=tuple(map(former, ended)), live=tuple(map(former, live)))
