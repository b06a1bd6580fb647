"""The hub of any number of runs: creates them, opens sessions, keeps tombstones, and looks at the clock.

Everything happens on one event loop; no method waits for a node, for the network or for the disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import NamedTuple

from agentd.api.errors import RunEnded, RunNotFound, StaleIncarnation, Unreachable
from agentd.api.patience import next_beat
from agentd.api.types import ControllerLease, RunSpec, RunStatus
from agentd.hub.messages import SessionHello
from agentd.hub.observer import OwnTime
from agentd.hub.plan import make_plan
from agentd.hub.run import HubJournal, HubRun
from agentd.hub.session import HubSession
from agentd.hub.state import HubRecord
from agentd.hub.tombstone import Tombstone, bury

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks at the clock; all else is an event. Each costs what a heartbeat costs."""
STEP = 0.5
"""A gap between two ticks beyond this is not the nodes' silence but this process's own."""

TOMBSTONES = 256

RunKey = tuple[str, int]


class Described(NamedTuple):
    """A run as its hub shows it."""

    status: RunStatus
    spec: RunSpec
    join_deadline: float
    """Wall-clock time at which the open round gives up; 0: it does not wait."""


class Hub:
    """The rendezvous of this node's agentd."""

    def __init__(self, node_id: str, journal: HubJournal, *, address: str = "", serving: bool = True) -> None:
        """Not `serving`: nobody is judged, and no lease or window runs, before `serve` is called."""
        self.node_id = node_id
        self.address = address
        """Where members reach this hub; may be set once the port is known."""
        self._journal = journal
        self._runs: dict[RunKey, HubRun] = {}
        self._tombstones: OrderedDict[RunKey, Tombstone] = OrderedDict()
        self._newest: dict[str, int] = {}
        self._serving = serving
        self._clock: OwnTime | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._closed = False

    def create(
        self, spec: RunSpec, incarnation: int, record: HubRecord | None = None, *, started_at: float = 0.0
    ) -> None:
        """Begin a run, or go on with one of which a record is left. Doing it again changes nothing.

        `started_at`: when the run was started, by the wall clock; 0: now.
        """
        key = (spec.run_id, incarnation)
        known = self._newest.get(spec.run_id, 0)
        if key in self._runs or key in self._tombstones:
            return
        if incarnation <= known:
            raise StaleIncarnation(spec.run_id, incarnation, known)
        now = time.time()
        plan = make_plan(
            spec,
            incarnation,
            hub_node_id=self.node_id,
            hub_address=self.address,
            started_at=started_at or now,
            hub_since=now,
        )
        run = HubRun(plan, self._journal, self._own_time, self._held_up, self._bury, record)
        self._newest[spec.run_id] = incarnation
        if run.ended:
            self._bury_as(key, bury(plan, run.status()))
            return
        self._runs[key] = run
        self._keep_time()

    def serve(self) -> None:
        """Nodes and callers can reach it from now on."""
        if self._serving or self._closed:
            return
        now = asyncio.get_running_loop().time()
        self._clock = OwnTime(now, step=STEP, own=self._own_time())
        self._serving = True
        for run in self._runs.values():
            run.tick(lease_judged=False)
        self._keep_time()

    def open_session(self, hello: SessionHello) -> HubSession:
        """A node's stream begins. Raises the error that refuses it."""
        run = self._find(hello.run_id, hello.incarnation)
        if isinstance(run, Tombstone):
            return run.open(hello, self._own_time)
        return run.open(hello)

    def describe(self, run_id: str, incarnation: int = 0) -> Described:
        """The run as a whole; incarnation 0 is the newest."""
        run = self._find(run_id, incarnation)
        if isinstance(run, Tombstone):
            return Described(run.status, run.spec, 0.0)
        return Described(run.status(), run.plan.spec, run.join_deadline())

    def terminate(
        self, run_id: str, incarnation: int = 0, grace: float | None = None, reason: str = ""
    ) -> RunStatus:
        """End a run on every node; of an ended one, tell how it ended."""
        run = self._find(run_id, incarnation)
        if isinstance(run, Tombstone):
            return run.status
        run.terminate(grace, reason)
        return run.status()

    def renew_lease(self, run_id: str, incarnation: int = 0) -> ControllerLease:
        """Take note that somebody looks after a run. Raises `NoControllerLease`, `RunEnded`."""
        run = self._find(run_id, incarnation)
        if isinstance(run, Tombstone):
            raise RunEnded(run_id, run.status.phase.value)
        return run.renew_lease()

    @property
    def live_runs(self) -> tuple[RunKey, ...]:
        """Runs that have not ended, with their incarnations."""
        return tuple(self._runs)

    async def close(self, reason: str = "agentd is going away") -> None:
        """Tell every member that the hub goes, end every stream, and look at the clock no more."""
        self._closed = True
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.cancel()
            await asyncio.wait([ticker])
        runs = list(self._runs.values())
        self._runs.clear()
        for run in runs:
            run.close(reason)
        for run in runs:
            await run.wait_written()

    def _find(self, run_id: str, incarnation: int) -> HubRun | Tombstone:
        if self._closed:
            # Its runs are not gone: whoever comes back in this moment is to ask the next agentd.
            raise Unreachable(self.address or self.node_id, "it is going away")
        key = (run_id, incarnation or self._newest.get(run_id, 0))
        found = self._runs.get(key) or self._tombstones.get(key)
        if found is not None:
            return found
        newest = self._newest.get(run_id, 0)
        if 0 < incarnation < newest:
            raise StaleIncarnation(run_id, incarnation, newest)
        raise RunNotFound(run_id, self.node_id)

    def _bury(self, run: HubRun) -> None:
        key = (run.plan.spec.run_id, run.plan.incarnation)
        if self._runs.pop(key, None) is not None:
            self._bury_as(key, bury(run.plan, run.status()))

    def _bury_as(self, key: RunKey, tombstone: Tombstone) -> None:
        self._tombstones[key] = tombstone
        while len(self._tombstones) > TOMBSTONES:
            (run_id, incarnation), _ = self._tombstones.popitem(last=False)
            if self._newest.get(run_id) == incarnation and (run_id, incarnation) not in self._runs:
                del self._newest[run_id]

    def _own_time(self) -> float:
        """Stands still until it serves."""
        now = asyncio.get_running_loop().time()
        if self._clock is None:
            self._clock = OwnTime(now, step=STEP if self._serving else 0.0)
        return self._clock.at(now)

    def _held_up(self, within: float) -> float:
        """Seconds this process was held up of late."""
        now = asyncio.get_running_loop().time()
        return 0.0 if self._clock is None else self._clock.lost(now, within)

    def _keep_time(self) -> None:
        if self._serving and self._runs and self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._watch_the_clock())

    async def _watch_the_clock(self) -> None:
        """Ticks while there are runs. A step that fails is a fault of one run, not of the clock."""
        loop = asyncio.get_running_loop()
        while self._runs and not self._closed:
            await next_beat(TICK)
            self._own_time()
            assert self._clock is not None
            on_time = self._clock.tick(loop.time())
            for run in list(self._runs.values()):
                try:
                    run.tick(on_time)
                except Exception:
                    log.exception("tick failed", extra={"run_id": run.plan.spec.run_id})
        self._ticker = None
