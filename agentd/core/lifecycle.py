"""The life of a worker group as a table: every event has an answer in every phase.

`docs/lifecycle.md` shows this table and a test compares the two. A phase that answers an event with itself
ignores it: the event came late, twice, or crossed another on its way.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from agentd.api.types import TERMINAL, Phase, WorkerState


class Event(str, enum.Enum):
    """What can happen to a worker group, in the words of docs/lifecycle.md."""

    READY = "ready"
    """Its host runs, none of its workers do: it wants a place in a round."""
    PLACED = "placed"
    """The hub gave it a place in a round."""
    SPARE = "spare"
    """The round is full: it waits for the next one."""
    STARTED = "started"
    """All its workers run."""
    WORKER_FAILED = "worker failed"
    """A worker failed by itself, or the group could not start them."""
    STOP_ROUND = "stop round"
    """The hub asks for the end of the round, to form another."""
    DONE = "done"
    """All its workers succeeded."""
    HOST_LOST = "host lost"
    """Its host ended without being asked to."""
    FINISH = "finish"
    """The run is over, or this node leaves it: stop what still runs."""
    SUCCEEDED = "ended: succeeded"
    FAILED = "ended: failed"
    STOPPED = "ended: stopped"
    LOST = "ended: lost"

    def __str__(self) -> str:
        return self.value


END: Mapping[Phase, Event] = MappingProxyType(
    {
        Phase.SUCCEEDED: Event.SUCCEEDED,
        Phase.FAILED: Event.FAILED,
        Phase.STOPPED: Event.STOPPED,
        Phase.LOST: Event.LOST,
    }
)
"""The event that leads to each terminal phase."""

_ENDS = {event: phase for phase, event in END.items()}


def _row(**moves: Phase) -> dict[Event, Phase]:
    return {Event[name]: phase for name, phase in moves.items()} | _ENDS


_MOVES: Mapping[Phase, Mapping[Event, Phase]] = {
    Phase.PENDING: _row(READY=Phase.RENDEZVOUS, FINISH=Phase.STOPPING),
    Phase.RENDEZVOUS: _row(
        SPARE=Phase.WAITING,
        STARTED=Phase.RUNNING,
        STOP_ROUND=Phase.RESTARTING,
        HOST_LOST=Phase.PENDING,
        FINISH=Phase.STOPPING,
    ),
    Phase.WAITING: _row(
        READY=Phase.RENDEZVOUS, PLACED=Phase.RENDEZVOUS, HOST_LOST=Phase.PENDING, FINISH=Phase.STOPPING
    ),
    Phase.RUNNING: _row(
        READY=Phase.RENDEZVOUS,
        STOP_ROUND=Phase.RESTARTING,
        DONE=Phase.DONE,
        HOST_LOST=Phase.RESTARTING,
        FINISH=Phase.STOPPING,
    ),
    Phase.RESTARTING: _row(READY=Phase.RENDEZVOUS, FINISH=Phase.STOPPING),
    Phase.STOPPING: _row(),
    Phase.DONE: _row(STOP_ROUND=Phase.RESTARTING, FINISH=Phase.STOPPING),
    Phase.SUCCEEDED: {},
    Phase.FAILED: {},
    Phase.STOPPED: {},
    Phase.LOST: {},
}

TRANSITIONS: Mapping[Phase, Mapping[Event, Phase]] = MappingProxyType(
    {phase: MappingProxyType({event: _MOVES[phase].get(event, phase) for event in Event}) for phase in Phase}
)
"""The phase after each event, for every phase."""

WORKER_STATES: Mapping[Phase, WorkerState] = MappingProxyType(
    {
        Phase.PENDING: WorkerState.INIT,
        Phase.RENDEZVOUS: WorkerState.INIT,
        Phase.WAITING: WorkerState.INIT,
        Phase.RUNNING: WorkerState.HEALTHY,
        Phase.RESTARTING: WorkerState.STOPPED,
        Phase.STOPPING: WorkerState.STOPPED,
        Phase.DONE: WorkerState.SUCCEEDED,
        Phase.SUCCEEDED: WorkerState.SUCCEEDED,
        Phase.FAILED: WorkerState.FAILED,
        Phase.STOPPED: WorkerState.STOPPED,
        Phase.LOST: WorkerState.UNKNOWN,
    }
)
"""torch's state beside each phase. RUNNING is UNHEALTHY from the first failure until its workers are gone."""

# Least advanced first: a node is where its slowest group is, and alive while any of them is.
_PROGRESS = (
    Phase.RESTARTING,
    Phase.PENDING,
    Phase.RENDEZVOUS,
    Phase.WAITING,
    Phase.STOPPING,
    Phase.RUNNING,
    Phase.DONE,
    Phase.LOST,
    Phase.FAILED,
    Phase.STOPPED,
    Phase.SUCCEEDED,
)


def transition(phase: Phase, event: Event) -> Phase:
    """The phase after `event`."""
    return TRANSITIONS[phase][event]


def worker_state(phase: Phase, *, unhealthy: bool = False) -> WorkerState:
    """torch's word for the group's workers in `phase`."""
    if phase is Phase.RUNNING and unhealthy:
        return WorkerState.UNHEALTHY
    return WORKER_STATES[phase]


def least_advanced(phases: Iterable[Phase]) -> Phase:
    """The phase of a node whose groups have these phases; a node without groups has nothing to wait for."""
    return min(phases, key=_PROGRESS.index, default=Phase.PENDING)


def as_markdown() -> str:
    """The table of docs/lifecycle.md: rows are phases, columns events, `·` where the phase stays."""
    events = [event for event in Event if event not in _ENDS]
    lines = [
        "| phase | worker state | " + " | ".join(f"*{event}*" for event in events) + " |",
        "|---|---|" + "---|" * len(events),
    ]
    for phase in Phase:
        cells = [_cell(phase, transition(phase, event)) for event in events]
        lines.append(f"| **{phase.name}** | {_state_cell(phase)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(before: Phase, after: Phase) -> str:
    return "·" if before is after else after.name


def _state_cell(phase: Phase) -> str:
    if phase is Phase.RUNNING:
        return "HEALTHY, UNHEALTHY"
    return f"{WORKER_STATES[phase]}" + (" (terminal)" if phase in TERMINAL else "")
