"""What the hub says to people: why a round stops, what a run waits for, how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentd.api.signals import signal_name
from agentd.api.types import Failure
from agentd.core.moments import utc
from agentd.hub.ranks import as_listed, missing
from agentd.hub.state import RunState

SHOWN = 16
"""Names in one sentence."""


def failure(what: Failure, node: str) -> str:
    """A failure as one clause."""
    if what.exit_code is not None:
        how = f"exited with code {what.exit_code}"
    elif what.signal is not None:
        how = f"was killed by {signal_name(what.signal)}"
    else:
        return f"{what.role} on node {node} failed: {what.message or 'no reason given'}"
    return f"rank {what.rank} (pid {what.pid}) on node {node} {how}"


def joined(state: RunState) -> str:
    """How far a round that forms has come."""
    plan, count = state.plan, len(state.waiting)
    there = f"{count} member{'' if count == 1 else 's'} joined"
    if plan.min_members == plan.max_members or not plan.expected:
        text = f"{count} of {plan.min_members} members joined"
    else:
        text = f"{there}, {plan.min_members} to {plan.max_members} make a round"
    return "".join([text, *(f"; {clause}" for clause in _not_there(state))])


def join_timeout(state: RunState) -> str:
    """Why a run that never had enough members failed."""
    plan = state.plan
    there = [plan.member_name(*as_listed(state, key)) for key in state.waiting]
    if plan.expected:
        expected = names([plan.member_name(*member) for member in plan.expected])
        absent = _not_there(state)
    else:
        expected = "any"
        absent = [f"missing: {plan.min_members - len(there)} more"]
    clauses = "; ".join([f"Expected: {expected}", f"joined: {names(there)}", *absent])
    return (
        f"only {len(there)} of at least {plan.min_members} members joined within {plan.join_timeout:g} s. "
        f"{clauses}. See that agentd runs on the missing nodes and can reach the hub, then run again."
    )


def detached(until: float) -> str:
    """What becomes of a node without a stream; `until` is wall-clock time."""
    return (
        f"out of touch; it keeps its place until {utc(until)}. "
        "See that its agentd runs and can reach this hub"
    )


def succeeded(count: int) -> str:
    """How a run ended well."""
    return "its only member succeeded" if count == 1 else f"all {count} members succeeded"


def full(state: RunState) -> str:
    """Why a member gets no place now."""
    limit = state.plan.spec.max_membership_changes
    if state.done:
        return "members of the round are done already; it is not disturbed any more"
    if limit is not None and state.membership_changes >= limit and len(state.live) < state.plan.max_members:
        return f"all {limit} membership changes are used up; waiting for another reason to form a round"
    return f"the round is full ({len(state.live)} members); waiting for the next one"


def external_workers(count: int) -> str:
    """What is known of the workers of an agent in a process of its own."""
    return f"{count} worker{'' if count == 1 else 's'}, known to their own agent only"


def names(items: Sequence[str]) -> str:
    """Names in a row, or how many more there are."""
    if not items:
        return "none"
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def members(labels: Iterable[str]) -> str:
    """One member or several, to begin a sentence with."""
    found = list(labels)
    return f"{'member' if len(found) == 1 else 'members'} {names(found)}"


def _not_there(state: RunState) -> list[str]:
    """Who does not wait for the round, those who left apart from those who are awaited."""
    listed = state.plan.expected
    gone = [state.plan.member_name(*member) for member in listed if member in state.left]
    clauses = (("missing", missing(state, state.waiting)), ("left", gone))
    return [f"{what}: {names(found)}" for what, found in clauses if found]
