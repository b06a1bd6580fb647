"""Rounds of agents that meet in one place: functions from meeting and time to meeting. No clock, no lock.

    FORMING -> RUNNING <-> STOPPING -> FORMING, and ENDED from RUNNING

A round is left in two beats: all its members stop and say so; only then is the next one formed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, TypeAlias

from agentd.api.states import WorkerState
from agentd.core.assignment import Assignment
from agentd.core.ranks import deal_ranks
from agentd.quickdata import dataclass

MemberId: TypeAlias = int

RETURN_S = 5.0
"""Seconds in which a member that has stopped a round comes to the next one, or has left without a word."""


class Beat(enum.Enum):
    """What the members are about."""

    FORMING = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a meeting was opened with; times in seconds."""

    min_members: int
    max_members: int
    max_restarts: int
    join_timeout: float
    last_call: float


@dataclass(frozen=True, slots=True)
class Offer:
    """What a member brings to a round."""

    role: str
    local_world_size: int
    at: float
    """When it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """All that is known of a run's members."""

    rules: Rules
    beat: Beat = Beat.FORMING
    since: float = 0.0
    """When the beat began."""
    last_call_at: float | None = None
    """While forming with enough members: until when more of them are waited for."""
    round: int = 0
    restart_count: int = 0
    waiting: Mapping[MemberId, Offer] = field(default_factory=dict)
    """Who wants to be in the next round, by arrival."""
    order: tuple[MemberId, ...] = ()
    """Members of the newest round by group rank, less those that left."""
    places: Mapping[MemberId, Assignment] = field(default_factory=dict)
    """Of the newest round."""
    busy: frozenset[MemberId] = frozenset()
    """Members of the newest round that may still have processes of it."""
    done: frozenset[MemberId] = frozenset()
    """Members whose workers all succeeded while the round runs."""
    closed: bool = False
    """No further round will be formed."""
    outcome: WorkerState | None = None
    reason: str = ""
    failures: Mapping[int, Any] = field(default_factory=dict)
    """What ended the run, by global rank."""


def join(meeting: Meeting, who: MemberId, offer: Offer, now: float) -> Meeting:
    """A member wants to be in the next round, and runs nothing of the last one."""
    if meeting.closed or meeting.beat is Beat.ENDED:
        return meeting
    if meeting.beat is Beat.RUNNING and (who in meeting.busy or _has_room(meeting)):
        meeting = _stopping(meeting, now)
    return replace(
        meeting, waiting={**meeting.waiting, who: offer}, busy=meeting.busy - {who}, done=meeting.done - {who}
    )


def fail(
    meeting: Meeting, who: MemberId, round_: int, reason: str, failures: Mapping[int, Any], now: float
) -> Meeting:
    """The round failed at a member. The first failure of a round is paid for; the rest is its consequence."""
    if meeting.beat is not Beat.RUNNING or round_ != meeting.round:
        return meeting
    rules = meeting.rules
    if meeting.closed:
        why = f"{reason}; the rendezvous is closed"
    elif meeting.restart_count >= rules.max_restarts:
        why = f"{reason}; restarts used: {meeting.restart_count} of {rules.max_restarts}"
    else:
        return _stopping(replace(meeting, restart_count=meeting.restart_count + 1), now)
    return replace(
        meeting, beat=Beat.ENDED, since=now, outcome=WorkerState.FAILED, reason=why, failures=failures
    )


def succeed(meeting: Meeting, who: MemberId, round_: int, now: float) -> Meeting:
    """All workers of a member succeeded. With the last member the run has."""
    if meeting.beat is not Beat.RUNNING or round_ != meeting.round or who not in meeting.busy:
        return meeting
    meeting = replace(meeting, busy=meeting.busy - {who}, done=meeting.done | {who})
    if meeting.busy:
        return meeting
    return replace(meeting, beat=Beat.ENDED, since=now, outcome=WorkerState.SUCCEEDED)


def gone(meeting: Meeting, who: MemberId, round_: int, now: float) -> Meeting:
    """Nothing of the round is left at a member. If nobody asked for that, the member leaves."""
    if round_ != meeting.round:
        return meeting
    if meeting.beat is Beat.RUNNING:
        return leave(meeting, who, now)
    return replace(meeting, busy=meeting.busy - {who})


def leave(meeting: Meeting, who: MemberId, now: float) -> Meeting:
    """A member will not come to the next round, and runs nothing. One that is done stays counted as done."""
    if meeting.beat is Beat.RUNNING and who in meeting.busy:
        meeting = _stopping(meeting, now)
    return replace(
        meeting,
        waiting={member: offer for member, offer in meeting.waiting.items() if member != who},
        order=tuple(member for member in meeting.order if member != who),
        busy=meeting.busy - {who},
    )


def close(meeting: Meeting) -> Meeting:
    """Form no further round. What runs goes on."""
    return replace(meeting, closed=True)


def settle(meeting: Meeting, now: float) -> Meeting:
    """Do what the state is ripe for, by who has answered or by the time; all but forming a round."""
    if meeting.beat is Beat.STOPPING:
        if now >= meeting.since + meeting.rules.join_timeout:
            # They cannot end their workers: the others go on without them.
            for late in meeting.busy:
                meeting = leave(meeting, late, now)
        if not meeting.busy:
            meeting = replace(meeting, beat=Beat.FORMING, since=now, last_call_at=None)
    if meeting.beat is not Beat.FORMING:
        return meeting
    enough = len(meeting.waiting) >= meeting.rules.min_members
    if enough == (meeting.last_call_at is not None):
        return meeting
    return replace(meeting, last_call_at=now + _last_call(meeting) if enough else None)


def ripe(meeting: Meeting, now: float) -> bool:
    """Whether a round can be formed, and waiting for more members is over or senseless."""
    count, rules = len(meeting.waiting), meeting.rules
    if meeting.beat is not Beat.FORMING or meeting.closed or count < rules.min_members:
        return False
    if meeting.last_call_at is not None and now >= meeting.last_call_at:
        return True
    # Spares do not take the place of a member that is on its way back.
    return _survivors_are_back(meeting) and (bool(meeting.order) or count >= rules.max_members)


def form(meeting: Meeting, now: float, master_addr: str, master_port: int) -> Meeting:
    """Begin a round. Survivors keep their order, newcomers follow by arrival, spares go on waiting."""
    members = _seated(meeting)
    offers = [meeting.waiting[member] for member in members]
    return replace(
        meeting,
        beat=Beat.RUNNING,
        since=now,
        last_call_at=None,
        round=meeting.round + 1,
        order=tuple(members),
        waiting={member: offer for member, offer in meeting.waiting.items() if member not in members},
        places=dict(zip(members, _places(meeting, offers, master_addr, master_port), strict=True)),
        busy=frozenset(members),
        done=frozenset(),
    )


def newcomers(meeting: Meeting) -> int:
    """How many wait that were not in the newest round and will be in the next one. Spares are none."""
    if meeting.beat is not Beat.STOPPING:
        return 0
    new = sum(member not in meeting.places for member in meeting.waiting)
    return min(new, max(0, meeting.rules.max_members - len(meeting.order)))


def gives_up_at(meeting: Meeting, who: MemberId) -> float | None:
    """When a waiting member has waited long enough. Spares and those that others hold up wait on."""
    if meeting.beat is not Beat.FORMING or who not in meeting.waiting:
        return None
    return max(meeting.since, meeting.waiting[who].at) + meeting.rules.join_timeout


def due(meeting: Meeting) -> float | None:
    """When `settle` or `ripe` has something to say though nothing happens."""
    if meeting.beat is Beat.STOPPING:
        return meeting.since + meeting.rules.join_timeout
    return meeting.last_call_at


def _stopping(meeting: Meeting, now: float) -> Meeting:
    # Who is done has no processes; it comes again because it finds its round stopped.
    return replace(meeting, beat=Beat.STOPPING, since=now, done=frozenset())


def _last_call(meeting: Meeting) -> float:
    """For newcomers what the rules say; for survivors at least what an agent takes to come again."""
    usual = meeting.rules.last_call
    return usual if _survivors_are_back(meeting) else max(usual, RETURN_S)


def _survivors_are_back(meeting: Meeting) -> bool:
    return meeting.waiting.keys() >= set(meeting.order)


def _has_room(meeting: Meeting) -> bool:
    """Whether a newcomer is worth another round. One that is nearly done is not disturbed."""
    return not meeting.done and len(meeting.busy) < meeting.rules.max_members


def _seated(meeting: Meeting) -> list[MemberId]:
    survivors = [member for member in meeting.order if member in meeting.waiting]
    new = [member for member in meeting.waiting if member not in survivors]
    return (survivors + new)[: meeting.rules.max_members]


def _places(meeting: Meeting, offers: Sequence[Offer], addr: str, port: int) -> list[Assignment]:
    dealt = deal_ranks([(offer.role, offer.local_world_size) for offer in offers])
    return [
        Assignment(
            round=meeting.round + 1,
            group_rank=group_rank,
            group_world_size=len(offers),
            rank_base=bases.rank,
            world_size=bases.world_size,
            role_rank_base=bases.role_rank,
            role_world_size=bases.role_world_size,
            master_addr=addr,
            master_port=port,
            restart_count=meeting.restart_count,
            max_restarts=meeting.rules.max_restarts,
        )
        for group_rank, bases in enumerate(dealt)
    ]
