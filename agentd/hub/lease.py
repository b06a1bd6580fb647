"""The controller lease of a run: it is stopped when nobody has renewed it for so long. No clock, no I/O.

Only runs that asked for one have it, and the hub alone judges it, over time in which it ran itself. A hub
that begins again knows nothing of renewals it missed, so it gives a whole lease.
"""

from __future__ import annotations

from agentd.api.types import Phase
from agentd.core.moments import utc
from agentd.hub.plan import RunPlan
from agentd.hub.rounds import finish
from agentd.hub.state import HubRecord, Renewal, RunState
from agentd.hub.turn import Turn


def granted(plan: RunPlan, now: float, record: HubRecord | None) -> Renewal | None:
    """The lease a hub begins with; None: the run asked for none."""
    if plan.controller_lease is None:
        return None
    return Renewal(now, plan.hub_since, "its hub began again" if record else "it was started")


def renew(turn: Turn, time: float) -> None:
    """Somebody looks after the run at this wall-clock time. Too late once the run is over."""
    if turn.state.renewal is not None and turn.state.outcome is None:
        turn.change(renewal=Renewal(turn.now, time, ""))


def ends_at(state: RunState) -> float | None:
    """When the lease ends by the hub's own time; None: there is none, or none any more."""
    lease = state.plan.controller_lease
    if state.renewal is None or lease is None or state.outcome is not None:
        return None
    return state.renewal.at + lease


def expire(turn: Turn) -> None:
    """Stop a run that nobody looks after any more."""
    end = ends_at(turn.state)
    if end is not None and turn.now >= end:
        finish(turn, Phase.STOPPED, _reason(turn.state))


def _reason(state: RunState) -> str:
    renewal, lease = state.renewal, state.plan.controller_lease
    assert renewal is not None
    when = utc(renewal.time)
    last = f"not renewed since {renewal.instead} at {when}" if renewal.instead else f"last renewed at {when}"
    return f"its controller lease of {lease:g} s has ended: {last}"
