"""What a node knows of its own members, and how it answers the hub. No clock, no I/O.

A report is kept until the hub has answered it, and said again on the next stream: nothing is lost with a
broken one, and nothing is said twice on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentd.api.types import Failure, Phase, RunStatus
from agentd.hub.messages import (
    AgedFailure,
    Assignment,
    MemberCondition,
    MemberDone,
    MemberFailed,
    MemberLeaving,
    MemberMessage,
    MemberReady,
    MemberState,
    RoundGone,
    StopRound,
)
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    role: str
    local_world_size: int
    condition: MemberCondition = MemberCondition.JOINING
    round: int = 0
    master_port: int = 0
    stopping: int = 0
    """A round it was asked to stop and has not said gone of."""
    leaving: bool = False
    report: MemberMessage | None = None
    """Said and not answered."""
    reported_at: float = 0.0


class MemberBook:
    """The members of one node in one run."""

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}
        self._placed: dict[str, int] = {}
        """Newest round by role. Outlives the member: who comes back has still heard of it."""
        self._stopped = 0
        self._placed_restarts = 0
        """As the newest place said."""
        self.restart_count = 0
        """Of the run, as far as its hub has told."""
        self.membership_changes = 0
        """The same of those that led to a round."""

    @property
    def needs_hub(self) -> bool:
        """Whether any member waits for the hub; running workers do not."""
        return any(
            member.report is not None or member.condition is not MemberCondition.RUNNING or member.stopping
            for member in self._members.values()
        )

    @property
    def runs_any(self) -> bool:
        """Whether a member has a place in a round: how long it may act is for the hub to say soon."""
        return any(member.condition is MemberCondition.RUNNING for member in self._members.values())

    def resume(self, state: MemberState) -> None:
        """Know a member as another agentd of this node left it, before any stream is open."""
        self._members[state.role] = _Member(
            role=state.role,
            local_world_size=state.local_world_size,
            condition=state.condition,
            round=state.round,
        )
        self._placed[state.role] = max(self._placed.get(state.role, 0), state.round)

    @property
    def failure_counted(self) -> bool:
        """Whether the count of restarts has a failure of the newest round with a place of this node."""
        return self.restart_count > self._placed_restarts

    def hear_place(self, restart_count: int) -> None:
        """A place came with this count; a later hub may have forgotten it."""
        self._placed_restarts = max(self._placed_restarts, restart_count)
        self.restart_count = max(self.restart_count, restart_count)

    def hear_view(self, view: RunStatus) -> None:
        """The hub has shown the run: what it shows may be forgotten by a later one, too."""
        self.restart_count = max(self.restart_count, view.restart_count)
        if view.phase is Phase.RUNNING:
            # One that is under way will be counted again by a hub that has forgotten it.
            self.membership_changes = max(self.membership_changes, view.membership_changes)

    def states(self) -> tuple[MemberState, ...]:
        """The members for the hello of a new stream."""
        return tuple(
            MemberState(
                role=member.role,
                local_world_size=member.local_world_size,
                condition=member.condition,
                round=member.round,
            )
            for member in self._members.values()
        )

    def unanswered(self, now: float) -> list[MemberMessage]:
        """What to say again on a new stream, right after its hello."""
        return [
            _aged(member.report, now - member.reported_at)
            for member in self._members.values()
            if member.report is not None
        ]

    def ready(self, role: str, local_world_size: int, master_port: int, round_: int) -> MemberMessage:
        """None of its workers run: it wants a place. `round_`: the newest its owner has heard a place of."""
        member = self._members.get(role) or _Member(role=role, local_world_size=local_world_size)
        self._members[role] = member = replace(member, local_world_size=local_world_size, leaving=False)
        report = MemberReady(
            role=role,
            local_world_size=local_world_size,
            master_port=master_port,
            round=self._heard(role),
        )
        if member.condition is not MemberCondition.JOINING and member.round > round_:
            # It crossed a place that its owner has yet to hear of, will start, and will answer.
            return replace(report, round=round_)
        if member.stopping:
            return self._keep(member, self._gone(member, member.stopping, master_port))
        member = replace(member, condition=MemberCondition.JOINING, master_port=master_port)
        return self._keep(member, report)

    def gone(self, role: str, round_: int, master_port: int, unkillable: str) -> MemberMessage | None:
        """Nothing of the round runs here any more. None: the hub does not count on this member."""
        member = self._members.get(role)
        if member is None:
            return None
        if member.leaving or unkillable or not master_port:
            del self._members[role]
            port = 0 if member.leaving else master_port
            return RoundGone(role=role, round=round_, master_port=port, unkillable=unkillable)
        if member.condition is not MemberCondition.JOINING and member.round > round_:
            # It crossed a newer place, or its owner has yet to learn that it runs: that will be answered.
            return self._gone(member, round_, master_port)
        return self._keep(member, self._gone(member, round_, master_port))

    def failed(
        self, role: str, round_: int, failures: Sequence[tuple[Failure, float]], reason: str, now: float
    ) -> MemberMessage | None:
        """Its part of the round failed; each failure comes with its age at `now`."""
        member = self._members.get(role)
        if member is None:
            return None
        aged = tuple(AgedFailure(failure=failure, age=age) for failure, age in failures)
        report = MemberFailed(role=role, round=round_, failures=aged, reason=reason)
        if member.condition is MemberCondition.JOINING:
            # The port it offered went with what failed.
            member = replace(member, master_port=0)
        return self._keep(replace(member, reported_at=now), report)

    def done(self, role: str, round_: int) -> MemberMessage | None:
        """Its workers of the round succeeded."""
        member = self._members.get(role)
        if member is None:
            return None
        member = replace(member, condition=MemberCondition.DONE, round=round_)
        return self._keep(member, MemberDone(role=role, round=round_))

    def leave(self, role: str, reason: str, *, failed: bool = False) -> MemberMessage | None:
        """It takes no further part. If workers still run, `gone` is to follow."""
        member = self._members.get(role)
        report = MemberLeaving(role=role, reason=reason, failed=failed)
        if member is None:
            return report if failed else None
        if member.condition is not MemberCondition.RUNNING:
            del self._members[role]
            return report
        return self._keep(replace(member, leaving=True), report)

    def assigned(self, assignment: Assignment) -> bool:
        """Take a place; false if the message is stale."""
        self.hear_place(assignment.restart_count)
        heard = self._heard(assignment.role)
        self._placed[assignment.role] = max(heard, assignment.round)
        member = self._members.get(assignment.role)
        if member is None or member.leaving or assignment.round <= heard:
            return False
        self._members[member.role] = replace(
            member,
            condition=MemberCondition.RUNNING,
            round=assignment.round,
            master_port=0,
            stopping=0,
            report=None,
        )
        return True

    def stop(self, message: StopRound) -> tuple[list[MemberMessage], bool]:
        """Hear that a round is to stop: what idle members answer, and whether any other has to act."""
        self._stopped = max(self._stopped, message.round)
        answers: list[MemberMessage] = []
        act = False
        for member in list(self._members.values()):
            if member.leaving:
                continue
            if member.condition is MemberCondition.JOINING:
                answers += self._answer_for_idle(member, message.round)
            elif member.round == message.round and member.stopping != message.round:
                self._members[member.role] = replace(member, stopping=message.round, report=None)
                act = True
        return answers, act

    def finish(self) -> None:
        """The run is over: nothing is left to be said twice."""
        for role, member in self._members.items():
            self._members[role] = replace(member, report=None)

    def _heard(self, role: str) -> int:
        return max(self._placed.get(role, 0), self._stopped)

    def _answer_for_idle(self, member: _Member, round_: int) -> list[MemberMessage]:
        if member.master_port:
            return [self._keep(member, self._gone(member, round_, member.master_port))]
        self._members[member.role] = replace(member, stopping=round_, report=None)
        return []

    def _gone(self, member: _Member, round_: int, master_port: int) -> RoundGone:
        return RoundGone(role=member.role, round=round_, master_port=master_port)

    def _keep(self, member: _Member, report: MemberMessage) -> MemberMessage:
        if isinstance(report, RoundGone):
            member = replace(
                member,
                condition=MemberCondition.JOINING,
                master_port=report.master_port,
                stopping=0 if report.round >= member.stopping else member.stopping,
            )
        self._members[member.role] = replace(member, report=report)
        return report


def _aged(report: MemberMessage, since: float) -> MemberMessage:
    if not isinstance(report, MemberFailed):
        return report
    older = tuple(replace(aged, age=aged.age + max(since, 0.0)) for aged in report.failures)
    return replace(report, failures=older)
