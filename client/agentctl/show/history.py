"""Events as lines for people."""

from __future__ import annotations

import datetime

from agentctl.show.talk import readable
from agentctl.show.words import ranks
from agentd.api.history import Event, EventKind, EventWorker
from agentd.api.signals import signal_name


class EventLines:
    """Lines in columns that widen as they must: nobody knows yet what a followed run will tell."""

    def __init__(self) -> None:
        self._widths = [0, 0, 0, 0]

    def of(self, event: Event) -> str:
        """Time, node, run and role, what, and the rest of the story."""
        cells = [moment(event.time), event.node_id, subject(event), event.kind.replace("_", " ")]
        self._widths = [max(pair) for pair in zip(self._widths, map(len, cells), strict=True)]
        padded = (cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True))
        return readable(" ".join("  ".join((*padded, story(event))).splitlines()).rstrip())


def moment(seconds: float) -> str:
    """A moment in local time, to the millisecond: what happened first is the question."""
    found = datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc).astimezone()
    return found.strftime("%Y-%m-%d %H:%M:%S.") + f"{found.microsecond // 1000:03}"


def subject(event: Event) -> str:
    """What it happened to: agentd, a run, or a role of it."""
    if not event.run_id:
        return "agentd"
    return f"{event.run_id}/{event.role}" if event.role else event.run_id


def story(event: Event) -> str:
    """Round, workers and detail in one sentence."""
    parts = [f"round {event.round}"] if event.round else []
    if event.kind in (EventKind.PHASE, EventKind.RUN_ENDED) and event.phase is not None:
        parts.append(str(event.phase))
    if event.workers:
        parts.append(_workers(event))
    head = ", ".join(parts)
    return f"{head}: {event.detail}" if head and event.detail else head or event.detail


def _workers(event: Event) -> str:
    if len(event.workers) == 1:
        (worker,) = event.workers
        return f"rank {worker.rank}, pid {worker.pid}{_end(worker)}"
    pids = " ".join(str(worker.pid) for worker in event.workers)
    return f"ranks {ranks(worker.rank for worker in event.workers)}, pids {pids}"


def _end(worker: EventWorker) -> str:
    if worker.signal is not None:
        return f", {signal_name(worker.signal)}"
    return "" if worker.exit_code is None else f", exit code {worker.exit_code}"
