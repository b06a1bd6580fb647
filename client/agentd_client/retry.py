"""When a call that failed is made again. Only calls whose repetition is safe, and only for a broken path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from agentd.api.errors import AgentError, Code, Unreachable
from agentd_client.plan import AnswerT, Call, Pause, Plan, call_all, clock

PAUSES: Final = (0.25, 0.5)
"""Seconds before each repetition: enough for a connection that was reset, short for a person who waits."""


def call_each(
    calls: Sequence[Call[AnswerT]], pauses: Sequence[float] = PAUSES
) -> Plan[list[AnswerT | AgentError]]:
    """Make all calls at once and those again that may be; every call ends by its own deadline."""
    outcomes = yield from call_all(calls)
    started = yield from clock()
    for pause in pauses:
        again = [i for i, outcome in enumerate(outcomes) if _may_repeat(calls[i], outcome)]
        if not again:
            break
        yield Pause(pause)
        now = yield from clock()
        left = [(i, _shortened(calls[i], now - started)) for i in again]
        due = [(i, call) for i, call in left if call.timeout_s is None or call.timeout_s > 0]
        repeated = yield from call_all([call for _, call in due])
        for (i, _), outcome in zip(due, repeated, strict=True):
            outcomes[i] = outcome
    return outcomes


def call_one(call: Call[AnswerT], pauses: Sequence[float] = PAUSES) -> Plan[AnswerT]:
    """One call's answer; its error is raised."""
    (outcome,) = yield from call_each([call], pauses)
    if isinstance(outcome, AgentError):
        raise outcome
    return outcome


def is_absence(error: AgentError) -> bool:
    """Whether the node may well take the request later: it is away, cut off or busy, it has not refused."""
    return error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


def _may_repeat(call: Call[AnswerT], outcome: AnswerT | AgentError) -> bool:
    return isinstance(outcome, Unreachable) and call.method.repeatable


def _shortened(call: Call[AnswerT], elapsed: float) -> Call[AnswerT]:
    return call if call.timeout_s is None else replace(call, timeout_s=call.timeout_s - elapsed)
