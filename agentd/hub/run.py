"""One run at its hub: carries events into the core and its effects out, in order, journal before words.

Steps are taken at once as events come; only effects wait, behind the row that must be written first. A
heartbeat touches neither.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from agentd.api.errors import NoControllerLease, RunEnded, StaleSession
from agentd.api.patience import within
from agentd.api.types import TERMINAL, ControllerLease, RunStatus
from agentd.hub import core, lease
from agentd.hub.messages import HubLeaving, MemberFailed, MemberMessage, RunView, SessionHello
from agentd.hub.plan import RunPlan
from agentd.hub.session import HubSession
from agentd.hub.state import (
    Attached,
    Beat,
    CloseSession,
    Effect,
    Ended,
    Event,
    HubRecord,
    Journal,
    NodeSilent,
    Received,
    Renewed,
    RunState,
    Send,
    StreamEnded,
    Terminated,
    Tick,
)
from agentd.hub.view import compact, run_phase, run_status

log = logging.getLogger(__name__)

JOURNAL_WAIT = 1.0
"""Longest an effect waits for its row."""
LAST_JOURNAL_WAIT = 5.0
"""The same of the end of a run: who has heard of that says nothing to a hub that has forgotten it."""

VIEW_INTERVAL = 0.1
VIEW_COST = 0.002
"""Seconds between two views for each node here or awaited, so that pushing them never takes more than a part
of a core."""

OVERDUE_BEATS = 2.0
"""Heartbeats a node may lack before a failure of its round is suspected to be its doing."""


class HubJournal(Protocol):
    """Where a hub's promises are kept."""

    async def hub_announced(self, run_id: str, incarnation: int, record: HubRecord, patience: float) -> None:
        """Return when the record is safe, or in any case about as soon as the patience ends."""


class HubRun:
    """A live or just ended run. All methods are for the event loop's thread."""

    def __init__(
        self,
        plan: RunPlan,
        journal: HubJournal,
        own_time: Callable[[], float],
        held_up: Callable[[float], float],
        on_end: Callable[[HubRun], None],
        record: HubRecord | None = None,
    ) -> None:
        self.plan = plan
        self._journal = journal
        self._own_time = own_time
        self._held_up = held_up
        self._on_end = on_end
        self._state = core.begin(plan, own_time(), record)
        self._due = core.due(self._state)
        self._sessions: dict[str, HubSession] = {}
        self._outbox: deque[tuple[Effect, HubSession | None]] = deque()
        """Effects, each with the session it is for: a node's next one must not hear the words to the last."""
        self._writing: asyncio.Task[None] | None = None
        self._revision = 1
        self._status: RunStatus | None = None
        self._finished_at = 0.0
        self._shown: RunView | None = None
        self._show_again: asyncio.TimerHandle | None = None
        self._shown_at = float("-inf")
        self._closed = False

    # --- what the hub asks ------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the outcome is final and nobody runs."""
        return self._state.beat is Beat.ENDED

    def status(self) -> RunStatus:
        """The run as a whole, built once for each change."""
        if self._status is None:
            self._status = run_status(
                self._state,
                revision=self._revision,
                finished_at=self._finished_at,
                lease_until=self._lease_until(),
                join_deadline=self.join_deadline(),
                wall_ahead=self._wall_ahead(),
            )
        return self._status

    def join_deadline(self) -> float:
        """Wall-clock time at which the open round gives up; 0 if it does not wait for members."""
        state = self._state
        waits = state.beat is Beat.FORMING and len(state.waiting) < self.plan.min_members
        if not waits or state.join_deadline is None:
            return 0.0
        return state.join_deadline + self._wall_ahead()

    def open(self, hello: SessionHello) -> HubSession:
        """Take a node's session, or raise why not. A newer session ends the older one of its node."""
        problem = core.refusal(self._state, hello, self._own_time())
        if problem is not None:
            raise problem
        older = self._sessions.get(hello.node_id)
        if older is not None:
            older.end(StaleSession(hello.node_id))
        session = HubSession(self, hello, self.plan.roles, self._own_time)
        self._sessions[hello.node_id] = session
        self.post(Attached(hello))
        if self._shown is not None and self._show_again is None:
            # Else a newer one is due: a thousand nodes that join would be told two each.
            session.tell(self._shown)
        return session

    def terminate(self, grace: float | None, reason: str) -> None:
        """End the run everywhere; asked again, it may only shorten the grace."""
        self.post(Terminated(grace, reason))

    def renew_lease(self) -> ControllerLease:
        """Take note that somebody looks after the run. Raises `NoControllerLease`, `RunEnded`."""
        spec, outcome = self.plan.spec, self._state.outcome
        if self.plan.controller_lease is None:
            raise NoControllerLease(spec.run_id)
        if outcome is not None:
            raise RunEnded(spec.run_id, outcome.value)
        self.post(Renewed(time.time()))
        return ControllerLease(duration=self.plan.controller_lease, until=self._lease_until())

    def tick(self, lease_judged: bool) -> None:
        """Let the core see the time, and judge who is silent if this process was not held up itself."""
        if self.ended:
            return
        if not lease_judged:
            self._deadlines_grew()
            return
        now = self._own_time()
        for session in [s for s in self._sessions.values() if now - s.heard_at > self.plan.lease]:
            self.post(NodeSilent(session.node_id, session.epoch))
        if self._due is not None and now >= self._due:
            self.post(Tick())

    def close(self, reason: str) -> None:
        """The hub goes away: members are told to come back in a moment."""
        self._closed = True
        if self._show_again is not None:
            self._show_again.cancel()
        for session in self._sessions.values():
            session.tell(HubLeaving(reason=reason))
            session.end()
        self._sessions.clear()

    async def wait_written(self) -> None:
        """Return once nothing waits for the journal."""
        while self._writing is not None:
            await asyncio.wait([self._writing])

    # --- what sessions say ------------------------------------------------------------------------------

    def heard(self, session: HubSession, message: MemberMessage) -> None:
        """A node's session said something of a member."""
        self.post(Received(session.node_id, session.epoch, message, self._overdue(message)))

    def stream_over(self, session: HubSession) -> None:
        """A stream is over."""
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]
        lease = self.plan.lease
        own_fault = self._held_up(2 * lease) >= lease / 2
        silence = self._own_time() - session.heard_at
        self.post(StreamEnded(session.node_id, session.epoch, own_fault, silence))

    def post(self, event: Event) -> None:
        """Take a step now; its effects follow those that still wait."""
        if self._closed:
            return
        before = self._state
        self._state, effects = core.step(before, event, self._own_time())
        self._log_nodes(before)
        self._due = core.due(self._state)
        self._outbox.extend((effect, self._addressee(effect)) for effect in effects)
        if effects:
            self._revision += 1
            self._status = None
        if self._writing is None:
            self._drain()

    def _lease_until(self) -> float:
        """Wall-clock time at which the controller lease ends; 0 if there is none."""
        end = lease.ends_at(self._state)
        return 0.0 if end is None else end + self._wall_ahead()

    def _wall_ahead(self) -> float:
        """Seconds from the hub's own time to the wall clock's, which only people read."""
        return time.time() - self._own_time()

    def _deadlines_grew(self) -> None:
        """This process was held up, so what it shows the end of ends later."""
        if not self._closed and (self._lease_until() or self.join_deadline()):
            self._revision += 1
            self._status = None
            self._show()

    def _overdue(self, message: MemberMessage) -> frozenset[str]:
        if not isinstance(message, MemberFailed) or self._state.beat is not Beat.RUNNING:
            return frozenset()
        latest = self._own_time() - OVERDUE_BEATS * self.plan.heartbeat
        return frozenset(s.node_id for s in self._sessions.values() if s.heard_at < latest)

    def _log_nodes(self, before: RunState) -> None:
        """Who went, who came back, and who is given up."""
        now = self._state
        if now.detached is before.detached and now.absent is before.absent:
            return
        for node_id in now.detached.keys() - before.detached.keys():
            log.warning("node out of touch", extra=self._about(node_id))
        for node_id in (before.detached.keys() - now.detached.keys()) & now.nodes.keys():
            log.info("node is back", extra=self._about(node_id))
        for node_id in now.absent.keys() - before.absent.keys():
            absent = now.absent[node_id]
            if absent.lost:
                log.warning("node lost", extra={**self._about(node_id), "reason": absent.reason})

    def _about(self, node_id: str) -> dict[str, object]:
        return {"run_id": self.plan.spec.run_id, "incarnation": self.plan.incarnation, "node_id": node_id}

    # --- effects ----------------------------------------------------------------------------------------

    def _drain(self) -> None:
        while self._outbox:
            effect, session = self._outbox.popleft()
            if isinstance(effect, Journal):
                self._writing = asyncio.get_running_loop().create_task(self._write(effect.record))
                return
            self._do(effect, session)

    async def _write(self, record: HubRecord) -> None:
        spec = self.plan.spec
        try:
            patience = JOURNAL_WAIT if record.outcome is None else LAST_JOURNAL_WAIT
            writing = self._journal.hub_announced(spec.run_id, self.plan.incarnation, record, patience)
            await within(patience, writing)
        except asyncio.TimeoutError:
            log.warning("hub record is late", extra={"run_id": spec.run_id, "round": record.round})
        except Exception:
            # The round goes on: members that wait for words cost more than a record that lags.
            log.exception("hub record not written", extra={"run_id": spec.run_id, "round": record.round})
        self._writing = None
        self._drain()

    def _addressee(self, effect: Effect) -> HubSession | None:
        return self._sessions.get(effect.node_id) if isinstance(effect, (Send, CloseSession)) else None

    def _do(self, effect: Effect, session: HubSession | None) -> None:
        if isinstance(effect, Send):
            if session is not None:
                session.tell(effect.message)
        elif isinstance(effect, CloseSession):
            if session is not None and session.epoch == effect.epoch:
                if self._sessions.get(effect.node_id) is session:
                    del self._sessions[effect.node_id]
                session.end()
        elif isinstance(effect, Ended):
            self._finish()
        else:
            self._show()

    def _finish(self) -> None:
        self._finished_at = self._finished_at or time.time()
        self._status = None
        status = self.status()
        self._push(compact(status))
        for session in self._sessions.values():
            session.end()
        self._sessions.clear()
        log.info(
            "run ended",
            extra={"run_id": status.run_id, "phase": str(status.phase), "reason": status.reason},
        )
        self._on_end(self)

    def _show(self) -> None:
        """Push a view if it says something new, not more often than its cost allows."""
        if self._show_again is not None or self._closed:
            return
        loop = asyncio.get_running_loop()
        interval = max(VIEW_INTERVAL, VIEW_COST * max(len(self._sessions), self.plan.min_members))
        # Of a large run not at once either: what its nodes are to do goes first.
        wait = interval if interval > VIEW_INTERVAL else self._shown_at + interval - loop.time()
        if wait > 0:
            self._show_again = loop.call_later(wait, self._show_now)
        else:
            self._show_now()

    def _show_now(self) -> None:
        self._show_again = None
        if self._closed or run_phase(self._state) in TERMINAL:
            return
        self._shown_at = asyncio.get_running_loop().time()
        self._push(compact(self.status()))

    def _push(self, view: RunStatus) -> None:
        """Tell every node that has not been told just that."""
        if self._shown is None or not _same(view, self._shown.status):
            self._shown = RunView(status=view)
        for session in self._sessions.values():
            session.tell(self._shown)


def _same(one: RunStatus, other: RunStatus) -> bool:
    return replace(one, revision=0) == replace(other, revision=0)
