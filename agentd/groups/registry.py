"""What callers can ask of this node's runs: admission, idempotence, the verbs. Runs on one event loop.

`run`, `stop` and `signal` do something; all else reads snapshots and never waits for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from itertools import chain
from weakref import WeakValueDictionary

from agentd.api.errors import (
    AgentdEnding,
    AgentError,
    InvalidSpec,
    JournalUnavailable,
    NodeDegraded,
    NodeDrained,
    NotRunning,
    RunConflict,
    RunEnded,
    StaleIncarnation,
)
from agentd.api.patience import within
from agentd.api.types import TERMINAL, ControllerLease, Drain, Phase, RunRequest, RunStatus, StopRequest
from agentd.core.specs import MAX_INCARNATION, MAX_REQUEST_ID, check_name, differing_fields
from agentd.groups import drain, history
from agentd.groups.admission import Machine
from agentd.groups.archive import Archive
from agentd.groups.background import Background
from agentd.groups.board import RunKey
from agentd.groups.comeback import Comeback
from agentd.groups.conditions import Conditions
from agentd.groups.facilities import Facilities
from agentd.groups.farewell import Farewells
from agentd.groups.intake import Intake
from agentd.groups.journal import Journal
from agentd.groups.ports import Rendezvous
from agentd.groups.records import ForgetRun
from agentd.groups.rejoin import Rejoin
from agentd.groups.reported import logs_on_disk
from agentd.groups.roster import Roster
from agentd.groups.run import NodeRun
from agentd.groups.stuck import StuckBook, StuckGroup
from agentd.groups.wish import wish_text
from agentd.host.door import HostDoor
from agentd.procs.pool import Pool

SUPERSEDED_WAIT_S = 5.0
STOP_NOW_S = 5.0
CLOSE_S = 2.0

_HUB = "hub_address"
_REVISIONS_PER_START = 1 << 32


class Registry(Roster):
    """The roster of the node's runs, and the verbs that change it. `start` comes first, `close` last."""

    def __init__(
        self,
        *,
        node_id: str,
        state_dir: str,
        journal: Journal,
        rendezvous: Rendezvous,
        advertise: Callable[[str], Awaitable[str]],
        machine: Machine | None = None,
        host_mode: str = "stop",
        conditions: Conditions | None = None,
        archive: Archive | None = None,
    ) -> None:
        """`journal` is started. `advertise(hub_address)` tells how the members of that hub's run reach us.

        `host_mode`: `keep` if hosts and workers are to outlive this agentd, `stop` if they end with it.
        `archive` still knows runs that are not shown any more.
        """
        background = Background()
        super().__init__(node_id, journal.daemon_starts * _REVISIONS_PER_START, background)
        self._background = background
        self._journal = journal
        self._rendezvous = rendezvous
        self._archive = archive
        self._disk = Pool(8, thread_name_prefix="agentd-disk")
        self._sweeps = Pool(8, thread_name_prefix="agentd-sweep")
        self._door = HostDoor(state_dir, self._disk)
        self._conditions = conditions or Conditions()
        self._conditions.add_source(lambda: journal.problems)
        self._conditions.on_change(self._refresh_all)
        self._conditions.on_turn(
            lambda name, sentence: journal.post(*history.condition_turned(name, sentence, time.time()))
        )
        self._stuck = StuckBook(self._conditions, self._sweeps, self._come_back)
        self._shared = Facilities(
            journal=journal,
            door=self._door,
            state_dir=state_dir,
            disk=self._disk,
            sweeps=self._sweeps,
            host_mode=host_mode,
            conditions=self._conditions,
            stuck=self._stuck,
        )
        self._intake = Intake(node_id, self, self._shared, rendezvous, advertise, machine)
        self._rejoin = Rejoin(
            self, self._intake, rendezvous, archive, lambda: self.ending or self.drain is not None
        )
        self._farewells = Farewells(rendezvous, advertise, background)
        self._admissions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.drain: Drain | None = journal.remembered.drain
        """Set while an operator wants the node empty: it takes no new run, see `agentd.groups.drain`."""
        self.ending = False
        """Whether new runs are refused because agentd goes away."""

    # --- life

    async def start(self) -> None:
        """Go on where an earlier agentd was, and let hosts dial in."""
        await self._intake.start()
        await Comeback(self._node_id, self, self._intake, self._farewells, self._shared, self.drain).run()
        # Only now: a host that is not known yet would be told to end.
        await self._door.open()

    async def shut_down(self, grace: float | None = None) -> None:
        """Take no new run, stop this node's part of each, and return when nothing of them is left.

        `grace` can only shorten that of a run.
        """
        self.ending = True
        reason = f"agentd of node {self._node_id} goes away"
        for run in list(self._live.values()):
            own = run.part.stop_grace
            shortest = own if grace is None else min(grace, own)
            if run.part.hub_here and run.is_alone:
                await self._rendezvous.terminate("", *run.part.key, shortest, reason)
            else:
                run.leave(reason, shortest)
        await self._until_groups_ended()

    async def stop_now(self) -> None:
        """End all groups at once. Returns soon, whatever happens."""
        self.ending = True
        for run in self._live.values():
            run.stop(f"agentd of node {self._node_id} ends at once", 0.0)
        try:
            await within(STOP_NOW_S, self._until_groups_ended())
        except asyncio.TimeoutError:
            for run in self._live.values():
                run.kill_hosts()

    async def close(self) -> None:
        """Give everything back. What still runs goes on for the next agentd, or is stopped by its host."""
        await self._background.close(CLOSE_S)
        await asyncio.gather(*(run.close() for run in self._live.values()))
        await self._stuck.close()
        await self._rejoin.close()
        await self._rendezvous.close()
        await self._door.close()
        for pool in (self._disk, self._sweeps):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def accepting(self) -> bool:
        """Whether a Run would be taken, as far as the node as a whole is concerned."""
        return not self.ending and self.drain is None and self._conditions.ready

    @property
    def conditions(self) -> tuple[str, ...]:
        """What degrades the node, by name."""
        return tuple(self.problems)

    @property
    def problems(self) -> Mapping[str, str]:
        """What degrades the node: for people, by the name of the condition."""
        return self._conditions.look()

    def _come_back(self, group: StuckGroup) -> None:
        self._rejoin.after(group)

    def _refresh_all(self) -> None:
        """Every live run shows what degrades its node."""
        for run in list(self._live.values()):
            run.refresh()

    # --- verbs

    async def run(self, request: RunRequest) -> tuple[RunStatus, bool]:
        """Start this node's part of a run; a repeat gives the status of what is there already."""
        check_name("run_id", request.spec.run_id)
        if not 1 <= len(request.request_id) <= MAX_REQUEST_ID:
            raise InvalidSpec("request_id", f"it has 1 to {MAX_REQUEST_ID} characters")
        if request.incarnation > MAX_INCARNATION:
            # Taken as known here, it would leave no number for a later run of the id.
            raise InvalidSpec("incarnation", "is not one that a hub gave; ask the hub's node again")
        lock = self._admissions.setdefault(request.spec.run_id, asyncio.Lock())
        async with lock:
            if request.join:
                request = await self._asked_of_hub(request)
            _check_external(request)
            known = await self._known(request)
            if known is not None:
                return known, False
            if self.ending:
                raise AgentdEnding(self._node_id)
            if self.drain is not None:
                raise NodeDrained(self._node_id, drain.why(self.drain))
            condition, problem, next_step = self._conditions.refusal
            if condition:
                raise NodeDegraded(self._node_id, condition, problem, next_step)
            return await self._intake.begin(request), True

    async def stop(self, request: StopRequest, caller: str = "") -> RunStatus:
        """Ask for the end of a run, or of this node's part of it. Answers at once; `watch` tells the end.

        `caller`: who asks, for the history.
        """
        status = self._board.get(request.run_id, request.incarnation)
        run = self._live.get((status.run_id, status.incarnation))
        if run is None:
            return status
        if request.grace is not None and request.grace < 0:
            raise InvalidSpec("grace", "a time is not negative")
        self._journal.post(history.stop_asked(run.status, request, caller, time.time()))
        if run.conclusion is None:
            # What was answered is carried out, by the next agentd if need be.
            await self._journal.write(run.part.row(run.status, wish_text(request)))
        self._farewells.carry_out(run, request)
        return self._board.get(*run.part.key)

    async def signal(
        self, run_id: str, incarnation: int, signum: int, ranks: tuple[int, ...], caller: str = ""
    ) -> tuple[int, ...]:
        """Send a signal to running workers by global rank, all of this node if none is named."""
        if not 1 <= signum <= 64:
            raise InvalidSpec("signal", f"{signum} is not within 1..64")
        status = self._board.get(run_id, incarnation)
        run = self._live.get((status.run_id, status.incarnation))
        if run is None:
            raise RunEnded(run_id, status.phase.value)
        reached = run.signal(signum, ranks)
        if not reached and not any(group.phase is Phase.RUNNING for group in run.groups()):
            raise NotRunning(run_id, status.phase.value)
        self._journal.post(history.signal_sent(run.status, signum, reached, caller, time.time()))
        return reached

    async def renew_lease(self, run_id: str, incarnation: int = 0) -> ControllerLease:
        """Tell the run's hub that somebody looks after it. Raises `NoControllerLease`, `RunEnded`."""
        status = self._board.get(run_id, incarnation)
        key = status.run_id, status.incarnation
        run = self._live.get(key)
        hub_address = run.part.hub_address if run else self._ended[key].hub_address
        if run is None and not hub_address:
            raise RunEnded(run_id, status.phase.value)
        # Also of a run that this node has left: the others may go on.
        return await self._rendezvous.renew_lease(hub_address, *key)

    async def forget(self, key: RunKey, remove: Callable[[], Awaitable[None]]) -> bool:
        """Show an ended run no longer, once `remove` has cleared the disk of it. False: it lives."""
        async with self._admissions.setdefault(key[0], asyncio.Lock()):
            if key in self._live:
                return False
            await remove()
            self._ended.pop(key, None)
            self._board.forget(key)
            self._journal.post(ForgetRun(run_id=key[0], incarnation=key[1]))
            return True

    async def recall(self, run_id: str) -> None:
        """Show an ended run again that newer ones have pushed out, as the journal knows it."""
        if self._archive is None or self._board.newest(run_id) is not None:
            return
        async with self._admissions.setdefault(run_id, asyncio.Lock()):
            # What the disk does not tell is not known; that is the answer then.
            with contextlib.suppress(JournalUnavailable):
                found = await self._archive.ended_run(run_id)
                if found is not None and self._board.newest(run_id) is None:
                    row, groups = found
                    logs = await self._shared.on_disk(
                        lambda: tuple(chain.from_iterable(map(logs_on_disk, groups)))
                    )
                    self.show_ended(row, row.status, logs)

    # --- admission

    async def _asked_of_hub(self, request: RunRequest) -> RunRequest:
        status, spec = await self._rendezvous.describe(
            request.hub_address, request.spec.run_id, request.incarnation
        )
        if status.phase in TERMINAL:
            raise RunEnded(status.run_id, status.phase.value)
        return replace(request, spec=spec, incarnation=status.incarnation)

    async def _known(self, request: RunRequest) -> RunStatus | None:
        """The status to answer with if the run is there already. Raises for what contradicts it."""
        repeated = self._repeated(request)
        newest = self._board.newest(request.spec.run_id)
        if repeated is not None or newest is None:
            return repeated
        if request.incarnation and request.incarnation < newest.incarnation:
            raise StaleIncarnation(newest.run_id, request.incarnation, newest.incarnation)
        run = self._live.get((newest.run_id, newest.incarnation))
        if run is None:
            return None
        if request.incarnation in (0, newest.incarnation):
            return self._agreeing(run, request)
        await self._give_way(run, request)
        return None

    def _repeated(self, request: RunRequest) -> RunStatus | None:
        """How a run ended that this very request had started."""
        for (run_id, incarnation), ended in self._ended.items():
            if run_id == request.spec.run_id and ended.request_id == request.request_id:
                if request.incarnation in (0, incarnation):
                    return self._board.get(run_id, incarnation)
        return None

    async def _give_way(self, run: NodeRun, request: RunRequest) -> None:
        """End this part of an older use of the id, unless its own hub says that it is well and alive."""
        run_id, incarnation = run.part.key
        fields = differing_fields(run.part.spec, request.spec)
        try:
            status, _ = await self._rendezvous.describe(run.part.hub_address, run_id, incarnation)
        except AgentError:
            # Its hub is gone or has forgotten it: the later one is what its user wants.
            status = None
        if status is not None and status.phase not in TERMINAL and (fields or status.round):
            raise RunConflict(run_id, fields or [_HUB])
        # Two clients that started the same spec at two hubs at once: the later one wins, nothing ran yet.
        reason = "a newer incarnation of the run has begun"
        if run.part.hub_here:
            await self._farewells.terminate(run, reason, None)
        else:
            run.stop(reason, None)
        try:
            await within(SUPERSEDED_WAIT_S, run.ended.wait())
        except asyncio.TimeoutError:
            raise RunConflict(run_id, ["incarnation"]) from None

    def _agreeing(self, run: NodeRun, request: RunRequest) -> RunStatus | None:
        if request.join:
            # The hub's own node may have left, and may come back.
            return self._board.get(*run.part.key) if run.group_refs() else None
        fields = differing_fields(run.part.spec, request.spec)
        if request.hub_address not in ("", run.part.hub_address or run.part.address):
            fields = (*fields, _HUB)
        if fields:
            raise RunConflict(request.spec.run_id, fields)
        return self._board.get(*run.part.key)

    async def _until_groups_ended(self) -> None:
        await asyncio.gather(*(run.groups_ended() for run in self._live.values()))


def _check_external(request: RunRequest) -> None:
    """Raise for a part in a run whose agents start workers by themselves: a node is its hub or nothing."""
    if request.spec.external_agents and (request.join or request.hub_address):
        problem = (
            "no node takes part in this run, its agents are processes of their own: start one more of them "
            "with the hub's address as its rendezvous endpoint"
        )
        raise InvalidSpec("external_agents", problem)
