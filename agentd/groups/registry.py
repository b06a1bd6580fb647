"""All runs of this node: admission, idempotence, the verbs callers use. Everything runs on one event loop.

`run`, `stop` and `signal` do something; all else reads snapshots and never waits for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar
from weakref import WeakValueDictionary

from agentd.api.errors import (
    AgentdEnding,
    AgentError,
    InvalidSpec,
    JournalUnavailable,
    NodeDegraded,
    NodeDrained,
    NotRunning,
    ProgramUnusable,
    RunConflict,
    RunEnded,
    RunNotFound,
    StaleIncarnation,
)
from agentd.api.types import (
    TERMINAL,
    ControllerLease,
    Drain,
    GroupRef,
    Phase,
    RunRef,
    RunRequest,
    RunStatus,
    StopRequest,
    StopScope,
    StreamEnd,
    WorkerState,
)
from agentd.core.conditions import Condition
from agentd.core.specs import MAX_INCARNATION, MAX_REQUEST_ID, check_name, differing_fields, validate
from agentd.groups import drain, history
from agentd.groups.admission import Machine, RolePlan, plan_node
from agentd.groups.archive import Archive
from agentd.groups.board import Board, RunKey
from agentd.groups.conditions import Conditions
from agentd.groups.devices import DeviceBook
from agentd.groups.farewell import tell_gone
from agentd.groups.journal import Journal
from agentd.groups.logs import WorkerLog
from agentd.groups.ports import Rendezvous
from agentd.groups.records import ForgetRun, GroupRow, RunRow
from agentd.groups.recovery import FormerRun, look_back
from agentd.groups.reported import logs_on_disk
from agentd.groups.run import NodeRun, Part
from agentd.groups.stuck import StuckBook
from agentd.groups.supervisor import Facilities
from agentd.groups.wish import read_wish, wish_text
from agentd.host.door import HostDoor
from agentd.procs.pool import Pool

KEPT_ENDED = 256
"""Ended runs that Status still shows."""
SUPERSEDED_WAIT_S = 5.0
TERMINATE_TRIES_S = 60.0
STOP_NOW_S = 5.0
ADMISSION_S = 15.0
"""How long a disk may take to tell whether a program is there."""
CLOSE_S = 2.0

_log = logging.getLogger(__name__)
_HUB = "hub_address"
_REVISIONS_PER_START = 1 << 32
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Ended:
    """What is kept of a run that is over here."""

    request_id: str
    logs: tuple[WorkerLog, ...]
    hub_address: str = ""
    """Empty: the hub was here."""


class Registry:
    """The node's runs. `start` before anything else, `close` at the end."""

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
        self._node_id = node_id
        self._state_dir = state_dir
        self._journal = journal
        self._rendezvous = rendezvous
        self._advertise = advertise
        self._machine = machine
        self._archive = archive
        self._disk = Pool(8, thread_name_prefix="agentd-disk")
        self._sweeps = Pool(8, thread_name_prefix="agentd-sweep")
        self._door = HostDoor(state_dir, self._disk)
        self._conditions = conditions or Conditions()
        self._conditions.add_source(lambda: journal.problems)
        self._conditions.on_change(self._refresh_all)
        self._stuck = StuckBook(self._conditions, self._sweeps)
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
        self._board = Board(node_id, journal.daemon_starts * _REVISIONS_PER_START)
        self._devices = DeviceBook()
        self._live: dict[RunKey, NodeRun] = {}
        self._ended: OrderedDict[RunKey, _Ended] = OrderedDict()
        self._admissions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[None]] = set()
        self.drain: Drain | None = journal.remembered.drain
        """Set while an operator wants the node empty: it takes no new run, see `agentd.groups.drain`."""
        self.ending = False
        """Whether new runs are refused because agentd goes away."""

    # --- life

    async def start(self) -> None:
        """Go on where an earlier agentd was, and let hosts dial in."""
        self._machine = self._machine or await self._in_thread(lambda: Machine.here(self._node_id))
        await self._recover()
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
            await asyncio.wait_for(self._until_groups_ended(), STOP_NOW_S)
        except asyncio.TimeoutError:
            for run in self._live.values():
                run.kill_hosts()

    async def close(self) -> None:
        """Give everything back. What still runs goes on for the next agentd, or is stopped by its host."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=CLOSE_S)
            for task in late:
                task.cancel()
        await asyncio.gather(*(run.close() for run in self._live.values()))
        await self._stuck.close()
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
            return await self._begin(request), True

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
        self._carry_out(run, request)
        return self._board.get(*run.part.key)

    def _carry_out(self, run: NodeRun, request: StopRequest) -> None:
        reason = request.reason or "stopped by a caller"
        if request.scope is StopScope.LEAVE:
            run.leave(reason, request.grace)
        else:
            self._in_background(self._terminate(run, reason, request.grace))

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
                    logs = await self._in_thread(
                        lambda: tuple(chain.from_iterable(map(logs_on_disk, groups)))
                    )
                    self._show_ended(row, row.status, logs)

    # --- snapshots

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus:
        """A run as it is now. Raises `RunNotFound`."""
        return self._board.get(run_id, incarnation)

    def runs(self, include_ended: bool) -> list[RunStatus]:
        """Every run, in an order that stays."""
        return self._board.all(include_ended)

    def watch(
        self, run_id: str, incarnation: int, after_revision: int
    ) -> AsyncIterator[RunStatus | StreamEnd]:
        """Snapshots as they come, see `Board.watch`."""
        return self._board.watch(run_id, incarnation, after_revision)

    async def wait_change(self, run_id: str, incarnation: int, revision: int) -> RunStatus:
        """The next snapshot of a run after `revision`."""
        return await self._board.wait_change(run_id, incarnation, revision)

    def on_change(self, listener: Callable[[str], object]) -> None:
        """Call `listener(run_id)` after each change of a run. It must not block."""
        self._board.on_change(listener)

    def worker_logs(self, run_id: str, incarnation: int) -> tuple[WorkerLog, ...]:
        """The log folders of a run here, over all rounds. Raises `RunNotFound`."""
        status = self._board.get(run_id, incarnation)
        key = status.run_id, status.incarnation
        run = self._live.get(key)
        return run.worker_logs() if run else self._ended[key].logs

    def live_logs(self) -> Mapping[RunKey, tuple[WorkerLog, ...]]:
        """The log folders of all runs that live here."""
        return {key: run.worker_logs() for key, run in self._live.items()}

    def note(self, key: RunKey, condition: Condition, sentence: str) -> None:
        """Something degrades a run here for good; one that has ended keeps its last status."""
        if run := self._live.get(key):
            run.note(condition, sentence)

    def group_refs(self) -> tuple[GroupRef, ...]:
        """Worker groups that have not ended."""
        return tuple(ref for run in self._live.values() for ref in run.group_refs())

    def runs_with_groups(self) -> tuple[RunKey, ...]:
        """The runs that have something here that is not over."""
        return tuple(key for key, run in self._live.items() if run.group_refs())

    def hub_of(self) -> tuple[RunRef, ...]:
        """Live runs whose hub is here."""
        return tuple(
            RunRef(run_id=run_id, incarnation=incarnation)
            for (run_id, incarnation), run in self._live.items()
            if run.part.hub_here
        )

    def health(self, run_id: str, role: str | None) -> bool:
        """Whether a run's groups here, or the one of a role, do their work. Raises `RunNotFound`."""
        status = self._board.get(run_id)
        own = (node for node in status.nodes if node.node_id == self._node_id)
        groups = [group for node in own for group in node.groups if role in (None, group.role)]
        if role is not None and not groups:
            raise RunNotFound(f"{run_id}/{role}", self._node_id)
        well = (WorkerState.HEALTHY, WorkerState.SUCCEEDED)
        live = status.phase not in TERMINAL
        return live and bool(groups) and all(group.worker_state in well for group in groups)

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
            await self._terminate(run, reason, None)
        else:
            run.stop(reason, None)
        try:
            await asyncio.wait_for(run.ended.wait(), SUPERSEDED_WAIT_S)
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

    async def _begin(
        self, request: RunRequest, former_logs: tuple[WorkerLog, ...] = (), *, known: bool = False
    ) -> RunStatus:
        """`known`: the journal has the run already; a disk that takes no write must not end it."""
        spec = request.spec
        validate(spec)
        self._check_node_name(request)
        plans = await self._plan(request)
        former = self._live.get((spec.run_id, request.incarnation))
        self._devices.reserve(spec.run_id, (d for plan in plans for d in plan.role.devices))
        if former is not None:
            # A Stop of its earlier part, which is over, must not be carried out on this one.
            await self._journal.write(former.part.row(former.status))
            former.take_on(plans)
            return self._board.get(*former.part.key)
        try:
            run = await self._promise(request, plans, former_logs, known)
        except BaseException:
            self._devices.release(spec.run_id)
            raise
        self._ended.pop(run.part.key, None)
        self._live[run.part.key] = run
        self._journal.post(history.run_started(run.status, run.part.hub_address, time.time()))
        run.start()
        _log.info("run begins here", extra={"run_id": spec.run_id, "incarnation": run.part.incarnation})
        return self._board.get(*run.part.key)

    async def _promise(
        self,
        request: RunRequest,
        plans: tuple[RolePlan, ...],
        former_logs: tuple[WorkerLog, ...],
        known: bool,
    ) -> NodeRun:
        """Journal the run before anything of it happens, so that the next agentd would know of it."""
        part = await self._make_part(request, plans)
        left = self._ended.get(part.key)
        logs = left.logs if left else former_logs
        run = NodeRun(part, self._shared, self._rendezvous, self._publish, logs)
        run_id, incarnation = part.key
        groups = (
            GroupRow(run_id=run_id, incarnation=incarnation, role=plan.role.role, phase=Phase.PENDING)
            for plan in plans
        )
        try:
            write = self._journal.write if known else self._journal.require
            await write(part.row(run.status), *groups)
            if part.hub_here and not request.join:
                self._rendezvous.create(part.spec, incarnation, part.address)
        except BaseException:
            self._journal.post(ForgetRun(run_id=run_id, incarnation=incarnation))
            raise
        return run

    def _check_node_name(self, request: RunRequest) -> None:
        name, spec = request.node_name, request.spec
        if name and not request.join and name not in spec.nodes:
            raise InvalidSpec("node_name", f"{name!r} is not in the run's node list")

    async def _plan(self, request: RunRequest) -> tuple[RolePlan, ...]:
        spec, machine = request.spec, self._machine
        assert machine is not None, "start comes first"
        elsewhere = spec.nodes and not request.node_name and not request.join
        if spec.external_agents or elsewhere:
            # This node is the hub of other nodes, or of agents in processes of their own, and nothing else.
            plans: tuple[RolePlan, ...] = ()
        else:
            planning = self._in_thread(
                lambda: plan_node(spec, request.node_name, request.passed_env, machine)
            )
            try:
                plans = await asyncio.wait_for(planning, ADMISSION_S)
            except asyncio.TimeoutError:
                problem = f"the disk did not answer in {ADMISSION_S:g} s"
                raise ProgramUnusable(self._node_id, spec.roles[0].command.entrypoint, problem) from None
        if not plans and request.hub_address:
            raise InvalidSpec("roles", f"none of them is for node {request.node_name or self._node_id!r}")
        return plans

    async def _make_part(self, request: RunRequest, plans: tuple[RolePlan, ...]) -> Part:
        newest = self._board.newest(request.spec.run_id)
        last = newest.incarnation if newest else 0
        now = time.time()
        return Part(
            spec=request.spec,
            # Fine enough that two hubs do not give one number to two runs of one id.
            incarnation=request.incarnation or max(last + 1, int(now * 1000)),
            request_id=request.request_id,
            node_id=self._node_id,
            address=await self._advertise(request.hub_address),
            plans=plans,
            node_name=request.node_name,
            hub_address=request.hub_address,
            passed_env=request.passed_env,
            started_at=now,
        )

    # --- what an earlier agentd left

    async def _recover(self) -> None:
        """Show what has ended, go on with what lives here, take part again in what lives elsewhere."""
        left = await self._in_thread(lambda: look_back(self._journal.remembered))
        for stuck in left.stuck:
            self._stuck.add(stuck)
        for former in left.ended:
            self._show_ended(former.row, former.row.status, former.logs)
            await self._be_tombstone(former)
        for former in left.live:
            try:
                await self._rejoin(former)
            except AgentError as error:
                await self._in_thread(former.end)
                self._lose(former, f"{former.what_happened}, and it cannot go on here: {error}")

    async def _be_tombstone(self, former: FormerRun) -> None:
        """Tell members that were away how the run ended, if its hub was here."""
        row = former.row
        if not row.hub_address and former.hub_record:
            with contextlib.suppress(AgentError):
                address = await self._advertise("")
                self._rendezvous.create(row.spec, row.incarnation, address, former.hub_record)

    async def _rejoin(self, former: FormerRun) -> None:
        row = former.row
        wish = read_wish(row.wish, row.incarnation)
        left = self._leaves(wish)
        stays_out = not former.groups and bool(left or (row.spec.no_rejoin and former.lost))
        if stays_out and (row.hub_address or not (left or former.has_others(self._node_id))):
            self._lose(former, f"{former.what_happened}, and {left or 'the run asks for no rejoin'}")
            if row.hub_address:
                address = await self._advertise(row.hub_address)
                self._in_background(tell_gone(self._rendezvous, row, address))
            return
        if not row.hub_address:
            address = await self._advertise("")
            self._rendezvous.create(row.spec, row.incarnation, address, former.hub_record)
        now = time.time()
        self._journal.post(
            *(history.group_lost(row, role, former.what_happened, now) for role in former.lost)
        )
        if stays_out:
            # It is the hub of others, who go on without this node's part.
            await self._go_on(former, ())
        elif former.groups:
            await self._go_on(former, await self._plans_beside(former))
        else:
            await self._begin(former.request, former.logs, known=True)
        if wish is not None:
            self._carry_out(self._live[row.run_id, row.incarnation], wish)

    def _leaves(self, wish: StopRequest | None) -> str:
        """Why this node is to have no part in a run that goes on; empty: it may."""
        if self.drain is not None and drain.time_left(self.drain, time.time()) == 0.0:
            return "the node is drained"
        return "it was leaving the run" if wish is not None and wish.scope is StopScope.LEAVE else ""

    async def _plans_beside(self, former: FormerRun) -> tuple[RolePlan, ...]:
        """For the groups that had not begun or cannot go on."""
        begun = {group.spec.role for group in former.groups}
        if not former.roles - begun:
            return ()
        return tuple(plan for plan in await self._plan(former.request) if plan.role.role not in begun)

    async def _go_on(self, former: FormerRun, plans: tuple[RolePlan, ...]) -> None:
        """Take the run's groups over, and begin others."""
        row, begun = former.row, {group.spec.role for group in former.groups}
        part = replace(
            await self._make_part(former.request, plans), started_at=row.status.started_at or time.time()
        )
        roles = [role for role in row.spec.roles if role.role in begun]
        self._devices.reserve(
            row.run_id, (d for role in (*roles, *(plan.role for plan in plans)) for d in role.devices)
        )
        run = NodeRun(part, self._shared, self._rendezvous, self._publish, former.logs)
        self._live[part.key] = run
        run.start(former.groups)
        _log.info("run goes on here", extra={"run_id": row.run_id, "incarnation": row.incarnation})

    def _lose(self, former: FormerRun, reason: str) -> None:
        row = former.row
        status = replace(row.status, phase=Phase.LOST, reason=reason, finished_at=time.time())
        self._journal.post(replace(row, status=status))
        self._show_ended(row, status, former.logs)

    def _show_ended(self, row: RunRow, status: RunStatus, logs: tuple[WorkerLog, ...]) -> None:
        self._remember(
            (row.run_id, row.incarnation),
            _Ended(row.request_id, logs, hub_address=row.hub_address),
        )
        self._board.publish(status)

    # --- what runs tell

    def _publish(self, run: NodeRun) -> None:
        self._board.publish(run.status)
        if not run.is_live:
            self._retire(run)

    def _retire(self, run: NodeRun) -> None:
        """Keep little of a run that is over, and of old ones nothing."""
        key = run.part.key
        self._live.pop(key, None)
        self._devices.release(run.part.spec.run_id)
        if run.conclusion is not None:
            self._keep(run.conclusion)
        self._remember(key, _Ended(run.part.request_id, run.worker_logs(), run.part.hub_address))

    def _remember(self, key: RunKey, ended: _Ended) -> None:
        self._ended[key] = ended
        while len(self._ended) > KEPT_ENDED:
            oldest, _ = self._ended.popitem(last=False)
            self._board.forget(oldest)

    async def _terminate(self, run: NodeRun, reason: str, grace: float | None) -> None:
        """Tell the hub that the run is to end; whether it hears it or not, this node's part does."""
        hub, (run_id, incarnation) = run.part.hub_address, run.part.key
        patience = time.monotonic() + TERMINATE_TRIES_S
        while time.monotonic() < patience:
            try:
                await self._rendezvous.terminate(hub, run_id, incarnation, grace, reason)
                return
            except (AgentError, OSError) as error:
                _log.warning(
                    "the hub was not told to end the run", extra={"run_id": run_id, "problem": str(error)}
                )
                run.stop(reason, grace)
            await asyncio.sleep(1.0)

    async def _until_groups_ended(self) -> None:
        await asyncio.gather(*(run.groups_ended() for run in self._live.values()))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        self._keep(asyncio.get_running_loop().create_task(work))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _check_external(request: RunRequest) -> None:
    """Raise for a part in a run whose agents start workers by themselves: a node is its hub or nothing."""
    if request.spec.external_agents and (request.join or request.hub_address):
        problem = (
            "no node takes part in this run, its agents are processes of their own: start one more of them "
            "with the hub's address as its rendezvous endpoint"
        )
        raise InvalidSpec("external_agents", problem)
