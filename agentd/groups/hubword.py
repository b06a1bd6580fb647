"""What the hub of a run says of it, as its node knows that: the newest word, and since when there is none."""

from __future__ import annotations

import time
from dataclasses import replace

from agentd.api.types import TERMINAL, RunStatus
from agentd.core.assignment import Assignment
from agentd.groups import history, snapshot
from agentd.groups.journal import Journal
from agentd.groups.part import Part
from agentd.groups.ports import Rendezvous
from agentd.hub.messages import RunFinished


class HubWord:
    """For one part of a run. Journals what of it is history."""

    def __init__(self, part: Part, rendezvous: Rendezvous, journal: Journal) -> None:
        self._part = part
        self._rendezvous = rendezvous
        self._journal = journal
        hub = part.hub_address or part.address
        self._run = snapshot.without_hub(part.spec, part.incarnation, hub, part.started_at)
        self._lost_at = 0.0
        self.problem = ""
        """Why the hub does not answer, for people; empty while it does."""

    @property
    def run(self) -> RunStatus:
        """The whole run by its newest word."""
        return replace(self._run, hub_unreachable_since=self._lost_at) if self._lost_at else self._run

    @property
    def is_last(self) -> bool:
        """Whether the hub has said that the run is over."""
        return self._run.phase in TERMINAL

    def ask_here(self) -> RunStatus | None:
        """Take what the hub knows, if it is in this process."""
        told = self._rendezvous.view(*self._part.key) if self._part.hub_here else None
        if told is None:
            return None
        self._run = replace(told, from_hub=True)
        return self._run

    def placed(self, assignment: Assignment) -> None:
        """A group has a place. Until the view of it comes it would be shown beside counts from before."""
        if not self.is_last:
            self._run = replace(
                self._run,
                round=max(self._run.round, assignment.round),
                restart_count=max(self._run.restart_count, assignment.restart_count),
            )

    def view(self, status: RunStatus) -> None:
        """The run as its hub sees it. On the hub's node the hub itself knows more than it sends."""
        before = self._run
        told_here = self.ask_here()
        if told_here is None:
            self._run = replace(status, from_hub=True)
        else:
            self._journal.post(*history.nodes_changed(before, told_here, time.time()))

    def finished(self, finished: RunFinished) -> None:
        """The run is over. The hub's node waits for the hub's own end, which is that of all nodes."""
        if not self._part.hub_here:
            self._run = replace(
                self._run,
                phase=finished.phase,
                reason=finished.reason,
                first_failure=finished.first_failure or self._run.first_failure,
                missing=(),
                spares=(),
                controller_lease_until=0.0,
                join_deadline=0.0,
            )

    def lost(self, problem: str, since: float, shown: RunStatus) -> None:
        """The hub does not answer, `since` then by the wall clock. `shown`: the run as it is shown now."""
        sentence = f"hub {shown.hub_address} unreachable: {problem}"
        if not self.problem:
            self._journal.post(history.hub_lost(shown, sentence, time.time()))
            self._lost_at = since
        self.problem = sentence

    def found(self, shown: RunStatus) -> None:
        """It answers again."""
        if self.problem:
            self._journal.post(history.hub_found(shown, time.time()))
        self.problem, self._lost_at = "", 0.0
