"""A node that its operator wants empty: it takes no new run, and waits for those it has or leaves them.

What was asked is journalled before it is answered, and the next agentd of the state directory goes on with
it. Leaving a run is a Stop of this node's part alone: the others go on, and its hub, if it is here, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol

from agentd.api.errors import AgentError, InvalidSpec
from agentd.api.types import (
    MAX_DURATION,
    Drain,
    DrainMode,
    DrainReport,
    DrainRequest,
    GroupRef,
    RunRef,
    RunStatus,
    StopRequest,
    StopScope,
)
from agentd.core.moments import utc
from agentd.groups import history
from agentd.groups.board import RunKey
from agentd.groups.records import DrainRow, Record
from agentd.groups.wish import drain_text

MAX_REASON = 1024
"""Characters of the operator's reason: it is told with each refusal."""

_log = logging.getLogger(__name__)


class Runs(Protocol):
    """The part of the registry that a drain is about."""

    drain: Drain | None

    def runs_with_groups(self) -> tuple[RunKey, ...]: ...

    def group_refs(self) -> tuple[GroupRef, ...]: ...

    def hub_of(self) -> tuple[RunRef, ...]: ...

    async def stop(self, request: StopRequest, caller: str = "") -> RunStatus: ...

    def on_change(self, listener: Callable[[str], object]) -> None: ...


class Journal(Protocol):
    """Where it is kept."""

    async def write(self, *records: Record) -> bool: ...


class Drainage:
    """What the Drain and Undrain calls do. `start` once the runs of an earlier agentd are known."""

    def __init__(self, node_id: str, runs: Runs, journal: Journal, changed: Callable[[], object]) -> None:
        """`changed()` is called when the node begins or ceases to be drained."""
        self._node_id = node_id
        self._runs = runs
        self._journal = journal
        self._changed = changed
        self._emptying: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        runs.on_change(lambda _run_id: self._look.set())

    def start(self) -> None:
        """Go on with what an earlier agentd was asked."""
        if self._runs.drain is not None:
            self._carry_out(self._runs.drain, "an earlier agentd")

    async def drain(self, request: DrainRequest, caller: str = "") -> DrainReport:
        """Take no new run from now on, and see to those there are. Again, it replaces what was asked before.

        Raises `InvalidSpec`.
        """
        check(request)
        now, before = time.time(), self._runs.drain
        drain = Drain(
            mode=request.mode,
            since=before.since if before else now,
            deadline=0.0 if request.deadline is None else now + request.deadline,
            reason=request.reason,
            grace=request.grace,
            asked_at=now,
        )
        # Refused from here on: a run that came while the disk is slow would not be seen by who asked.
        self._runs.drain = drain
        self._changed()
        await self._journal.write(DrainRow(text=drain_text(drain)), history.node_drained(drain, caller, now))
        if self._runs.drain is drain:
            self._carry_out(drain, caller)
        return DrainReport(drain=drain, groups=self._runs.group_refs(), hub_of=self._runs.hub_of())

    async def undrain(self, caller: str = "") -> Drain | None:
        """Take runs again; answers what was in force. What has left does not come back by itself."""
        before, self._runs.drain = self._runs.drain, None
        if before is not None:
            self._end_task()
            self._changed()
            await self._journal.write(DrainRow(text=""), history.node_undrained(caller, time.time()))
        return before

    async def close(self) -> None:
        """See to nothing any more; what was asked stays asked."""
        task = self._end_task()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def _carry_out(self, drain: Drain, caller: str) -> None:
        self._end_task()
        left = time_left(drain, time.time())
        if left is not None:
            self._emptying = asyncio.get_running_loop().create_task(self._empty(drain, left, caller))

    async def _empty(self, drain: Drain, left: float, caller: str) -> None:
        """Leave every run, also one whose admission was under way, once the time has come."""
        await asyncio.sleep(left)
        asked: set[RunKey] = set()
        while True:
            self._look.clear()
            for key in self._runs.runs_with_groups():
                if key not in asked:
                    asked.add(key)
                    await self._leave(key, drain, caller)
            await self._look.wait()

    async def _leave(self, key: RunKey, drain: Drain, caller: str) -> None:
        request = StopRequest(
            run_id=key[0],
            incarnation=key[1],
            grace=drain.grace,
            scope=StopScope.LEAVE,
            reason=f"node {self._node_id} is drained{_why(drain)}",
        )
        with contextlib.suppress(AgentError):  # it ended meanwhile
            await self._runs.stop(request, caller)
            _log.info("leaving a run: the node is drained", extra={"run_id": key[0], "incarnation": key[1]})

    def _end_task(self) -> asyncio.Task[None] | None:
        task, self._emptying = self._emptying, None
        if task is not None:
            task.cancel()
        return task


def check(request: DrainRequest) -> None:
    """Raise `InvalidSpec` for what no node could do."""
    if request.deadline is not None and request.mode is DrainMode.MOVE:
        raise InvalidSpec("deadline", "it belongs to mode WAIT: mode MOVE leaves every run at once")
    if request.deadline is not None and not 0 < request.deadline <= MAX_DURATION:
        raise InvalidSpec("deadline", "it is a time of up to a year; to leave at once, use mode MOVE")
    if request.grace is not None and not 0 <= request.grace <= MAX_DURATION:
        raise InvalidSpec("grace", "it is a time of up to a year")
    if len(request.reason) > MAX_REASON:
        raise InvalidSpec("reason", f"it has at most {MAX_REASON} characters")


def time_left(drain: Drain, now: float) -> float | None:
    """Seconds until the node leaves its runs, 0 if it is time; None: it never does. `now` is wall-clock time.

    A clock that was set back cannot make it wait for longer than was asked.
    """
    if drain.mode is DrainMode.MOVE:
        return 0.0
    if not drain.deadline:
        return None
    asked_at = drain.asked_at or drain.since
    return min(max(drain.deadline - now, 0.0), max(drain.deadline - asked_at, 0.0))


def why(drain: Drain) -> str:
    """Of a drain, for whom it refuses a run: since when, and the operator's reason."""
    return f"since {utc(drain.since)}{_why(drain)}"


def _why(drain: Drain) -> str:
    return f": {drain.reason}" if drain.reason else ""
