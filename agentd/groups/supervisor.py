"""One worker group's supervisor: the sole writer of its status. Every change goes through `core.group.step`.

Events come from the host, the hub and callers, and are taken one at a time: decided, journalled, published,
then carried out. Nothing here waits for a disk longer than the journal's patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from agentd.api.patience import within
from agentd.api.types import TERMINAL, GroupStatus, Phase, WorkerState
from agentd.core import group_events as ev
from agentd.core.contact import Contact
from agentd.core.group import GroupState, HostState, step
from agentd.groups import history, launch, layout, told
from agentd.groups.background import Background
from agentd.groups.facilities import Facilities
from agentd.groups.launch import Launcher
from agentd.groups.left import LeftGroup, state_text
from agentd.groups.logs import WorkerLog
from agentd.groups.ports import Member
from agentd.groups.reap import SECOND_LOOK_S
from agentd.groups.records import EventRow, GroupRow
from agentd.groups.sweep import Sweeper
from agentd.groups.witness import VERDICT, WorkerWitness
from agentd.host import wire
from agentd.host.handle import HostHandle
from agentd.procs import tree
from agentd.procs.identity import ProcessIdentity, boot_id, send_signal
from agentd.procs.spawn import SpawnError

LEFTOVER_GRACE_S = 2.0
"""What a lost host left behind gets between SIGTERM and SIGKILL."""
KILL_PATIENCE_S = tree.KILL_BOUND_S + 1.0
"""A host that is still there this long after SIGKILL counts as dead and unkillable."""
_OWN_DEEDS = (ev.HostSpawned, ev.Begin)
KEPT_LOGS = 20_000
"""Log folders that are remembered; the oldest rounds are forgotten first."""

_log = logging.getLogger(__name__)


class Supervisor:
    """Takes care of one worker group from its admission to its end."""

    def __init__(
        self,
        spec: wire.HostSpec,
        member: Member,
        facilities: Facilities,
        changed: Callable[[], object],
        left: LeftGroup | None = None,
    ) -> None:
        """`spec` has no token yet: each host gets its own. `left`: what an earlier agentd left of it."""
        self._spec = spec
        self._member = member
        self._shared = facilities
        self._changed = changed
        self._dir = layout.group_dir(facilities.state_dir, spec.run_id, spec.incarnation, spec.role)
        self._state = left.state if left else _new_state(spec)
        self._sequence = left.sequence if left else 0
        """The last report that the state knows of."""
        self._status = self._state.as_status()
        self._events: deque[tuple[int, ev.GroupEvent]] = deque()
        """Each with the number of the report it came with, or 0."""
        self._untold: tuple[EventRow, ...] = ()
        """Lines of the history that go with the next event's."""
        self._wake = asyncio.Event()
        self._handle: HostHandle | None = None
        self._contact: Contact | None = None
        self._launcher = Launcher(spec, self._dir, facilities, left.spec if left else None)
        self._sweeper = Sweeper(spec, facilities)
        self._witness = WorkerWitness(self._wake_host, self._accuse_host)
        """Knows the workers of which the host has not said that nothing is left."""
        if left:
            ended = [worker for worker in self._state.workers if not WorkerState.is_running(worker.state)]
            running = {worker.pid for worker in self._state.workers if worker not in ended}
            # Of others, unreaped or not yet known, nothing more is told, or their start is told first.
            self._witness.watch(
                left.sessions,
                {leader.pid for leader in left.sessions} - running,
                well=all(worker.state is WorkerState.SUCCEEDED for worker in ended),
            )
        self._logs: deque[WorkerLog] = deque(left.logs if left else (), maxlen=KEPT_LOGS)
        self._background = Background(self._failed)
        self._fault: BaseException | None = None
        """Of something in the background."""
        self._task = asyncio.get_running_loop().create_task(self._live(), name=f"group {self._dir}")
        self.ended = asyncio.Event()
        if left is not None:
            self._go_on(left)

    @property
    def role(self) -> str:
        """The group's role."""
        return self._spec.role

    @property
    def status(self) -> GroupStatus:
        """The newest snapshot."""
        return self._status

    @property
    def preload_problem(self) -> str:
        """Why not all workers of the newest round were forked, though the spec wishes it."""
        return self._state.preload_problem

    def worker_logs(self) -> tuple[WorkerLog, ...]:
        """The log folders of all its workers, oldest first."""
        return tuple(self._logs)

    def row(self) -> GroupRow:
        """The group for the journal."""
        identity = self._handle.identity if self._handle else None
        return GroupRow(
            run_id=self._spec.run_id,
            incarnation=self._spec.incarnation,
            role=self._spec.role,
            phase=self._state.phase,
            round=self._state.round,
            token=self._launcher.token,
            host_pid=identity.pid if identity else 0,
            host_start_time=identity.start_time if identity else 0,
            boot_id=boot_id(),
            directory=self._dir,
            reason=self._state.reason,
            state=state_text(self._state),
            sequence=self._sequence,
        )

    def post(self, event: ev.GroupEvent, sequence: int = 0) -> None:
        """Take note of something that happened, told by the report of that number. Never blocks."""
        self._events.append((sequence, event))
        self._wake.set()

    def signal(self, signum: int, ranks: Sequence[int]) -> tuple[int, ...]:
        """Send a signal to running workers by global rank, all if none is named; answers who gets it."""
        wanted = tuple(
            worker.rank
            for worker in self._status.workers
            if WorkerState.is_running(worker.state) and (not ranks or worker.rank in ranks)
        )
        if wanted and self._handle is not None:
            self._handle.send(wire.SignalWorkers(signal=signum, ranks=wanted))
        return wanted

    def tell_contact(self, contact: Contact) -> None:
        """The hub has answered, or wants a round gone. Past all events: it is about now."""
        self._contact = contact
        if self._handle is not None:
            self._handle.tell_contact(contact)

    def kill_host(self) -> None:
        """End the host at once, and its workers with it."""
        if self._handle is not None:
            self._handle.kill()

    async def close(self) -> None:
        """Watch over nothing any more. Ends nothing: that is `Finish`."""
        self._witness.clear()
        self._task.cancel()
        self._background.keep(self._task)
        await self._background.close()

    # What the host says.

    def on_host_frame(self, frame: wire.ReportFrame) -> None:
        """One report of the host becomes one event; what its agent recorded only goes to the journal."""
        self._heed(frame)
        if isinstance(frame, wire.Recorded):
            self._shared.journal.post(told.recorded(self._spec, frame))
        else:
            self.post(told.event_of(self._spec, frame), frame.sequence)

    def _heed(self, frame: wire.ReportFrame) -> None:
        """The witness looks after the workers that there are now."""
        match frame:
            case wire.Ready() | wire.Done():
                self._witness.clear()
            case wire.Started():
                self._witness.watch([ProcessIdentity(w.pid, w.start_time) for w in frame.workers])
            case wire.Exited():
                # If somebody stops the host itself, it says what follows once its workers had their grace.
                doubt_s = self._spec.stop_grace_s if told.may_be_a_stop(frame) else 0.0
                self._witness.told(frame.pid, told.end_of(frame), doubt_s)
            case wire.Failed() | wire.Isolated():
                self._witness.verdict_told()
            case _:
                pass

    def on_host_met(self) -> None:
        """It is connected again."""
        self._shared.journal.post(history.host_met(self._spec, self._state, time.time()))
        self.post(ev.HostMet())

    def on_host_exit(self, reason: str) -> None:
        """The host process is gone."""
        self.post(ev.HostDied(reason))

    # The life of the group.

    async def _live(self) -> None:
        try:
            while self._state.phase not in TERMINAL:
                sequence, event = await self._next_event()
                before, self._sequence = self._state, max(self._sequence, sequence)
                self._state, effects = step(before, event, time.monotonic())
                await self._note(event, before)
                for effect in effects:
                    await self._carry_out(effect)
        except Exception as error:  # noqa: BLE001 - whatever it is, the group must end visibly
            # A fault of ours must not leave workers that nobody watches, or a run that never ends.
            _log.exception("the supervisor of a group failed", extra=self._facts())
            await self._give_up(f"agentd failed: {error}")
        self.ended.set()
        self._changed()

    async def _give_up(self, reason: str) -> None:
        """End all of the group after a fault, and tell the hub, which waits for its part of the round."""
        self.kill_host()
        self._member.leave(self.role, "its agentd failed", failed=True)
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(KILL_PATIENCE_S, self._host_gone())
            stuck = await self._end_what_is_left(0.0)
        except Exception:  # noqa: BLE001 - a second fault must not hide the first
            _log.exception("what is left of a group is not known", extra=self._facts())
        else:
            self._member.gone(self.role, self._state.round, 0, tree.unkillable(stuck))
        self._state = replace(self._state, phase=Phase.LOST, reason=reason)
        self._status = self._state.as_status()

    async def _host_gone(self) -> None:
        while self._handle is not None and not self._handle.over:
            self._wake.clear()
            await self._wake.wait()

    def _go_on(self, left: LeftGroup) -> None:
        """Take the group over: what its host says from here on is heard, whether it lives or not."""
        self.post(ev.Resumed())
        if left.host is not None and left.state.host in (HostState.LIVE, HostState.LEAVING):
            self._handle = self._shared.door.await_host(left.spec, self._dir, left.host, left.sequence, self)

    async def _next_event(self) -> tuple[int, ev.GroupEvent]:
        while not self._events:
            if self._fault is not None:
                raise self._fault
            overdue_at = self._state.overdue_at
            if overdue_at is not None and time.monotonic() >= overdue_at:
                return 0, ev.Tick()
            await self._woken(overdue_at)
        return self._events.popleft()

    async def _woken(self, deadline: float | None) -> None:
        """Until something happens, or until then. No task of its own: this is where all news wait."""
        self._wake.clear()
        if deadline is None:
            await self._wake.wait()
            return
        left_s = max(0.0, deadline - time.monotonic())
        timer = asyncio.get_running_loop().call_later(left_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _is_next(self, *kinds: type[ev.GroupEvent]) -> bool:
        return bool(self._events) and isinstance(self._events[0][1], kinds)

    async def _note(self, event: ev.GroupEvent, before: GroupState) -> None:
        """Journal and publish what the event changed; effects come after."""
        state = self._state
        if state is before and not isinstance(event, ev.HostSpawned) and not self._untold:
            return
        moved = state.phase is not before.phase
        entries = (*self._untold, *history.of_group(self._spec, event, before, state, time.time()))
        if isinstance(event, ev.WorkerExited) and self._is_next(ev.WorkerExited, ev.WorkersFailed):
            # Workers of a round end together: they are shown and journalled together, and with what follows.
            self._untold = entries
            return
        self._untold = ()
        ending = state.ending != before.ending
        promised = moved or ending or state.round != before.round
        # A stop is the hub's promise, which the hub has journalled: it is said again to whoever forgot it.
        if (promised and not isinstance(event, ev.RoundStopped)) or isinstance(event, _OWN_DEEDS):
            await self._shared.journal.write(self.row(), *entries)
        elif entries:
            # Together, or the next agentd would tell of it once more.
            self._shared.journal.post(self.row(), *entries)
        if moved:
            _log.info("group is %s", state.phase, extra=self._facts())
        if isinstance(event, ev.WorkersStarted):
            self._logs.extend(told.logs_of(event))
        self._status = state.as_status()
        self._changed()
        if isinstance(event, ev.HostSpawned) and self._handle is not None:
            # Only now: a host that nobody could find again must not start anything.
            self._handle.admit()

    async def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.StartHost():
                await self._start_host()
            case ev.SendPlacement(placement):
                self._tell(wire.Assigned(place=placement))
            case ev.SendStopRound(round_, reason):
                self._tell(wire.StopRound(round=round_, reason=reason))
            case ev.SendFinish(phase, reason, grace):
                self._tell(wire.FinishHost(state=phase.value, reason=reason, grace_s=grace))
            case ev.Sweep():
                self._background.begin(self._sweep())
            case ev.HubReady(port):
                size = self._spec.local_world_size
                self._member.ready(self.role, size, port, self._state.round)
            case ev.HubGone(round_, port, unkillable):
                self._member.gone(self.role, round_, port, unkillable)
            case ev.HubFailed(round_, failures, ages, reason):
                pairs = list(zip(failures, ages, strict=True))
                self._member.failed(self.role, round_, pairs, reason)
            case ev.HubDone(round_):
                self._member.done(self.role, round_)
            case ev.HubLeave(reason):
                self._member.leave(self.role, reason, failed=True)

    async def _start_host(self) -> None:
        try:
            self._handle = await self._launcher.start(self, self._interrupted)
        except asyncio.TimeoutError:
            self.post(ev.HostDied(f"the disk did not answer in {launch.PATIENCE_S:g} s"))
        except (SpawnError, OSError) as error:
            self.post(ev.HostDied(str(error)))
        else:
            if self._contact is not None:
                self._handle.tell_contact(self._contact)
            identity = self._handle.identity
            assert identity is not None
            self.post(ev.HostSpawned(identity.pid))

    async def _interrupted(self, pause_s: float) -> bool:
        """Wait so long, or until something has happened; tells whether it has."""
        if not self._events:
            self._wake.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(pause_s, self._wake.wait())
        return bool(self._events)

    def _tell(self, frame: wire.AgentFrame) -> None:
        if self._handle is not None:
            self._handle.send(frame)
            self._wake_host()

    def _wake_host(self) -> None:
        """A host that somebody has stopped is wanted now. One that runs does not notice."""
        if self._handle is not None and self._handle.identity is not None:
            send_signal(self._handle.identity, signal.SIGCONT)

    def _accuse_host(self, pid: int) -> None:
        if self._handle is None or self._handle.over or self._state.host is not HostState.LIVE:
            return
        if pid == VERDICT and self._state.overdue_at is not None:
            # It is stopping its workers, who have their grace; that has a deadline of its own.
            return
        untold = (
            "what follows from the end of its workers" if pid == VERDICT else f"the end of its worker {pid}"
        )
        reason = f"it hangs: it did not tell {untold}"
        _log.warning("a host is ended because %s", reason, extra=self._facts())
        self.post(ev.HostEnding(reason))
        self._background.begin(self._sweep())

    async def _sweep(self) -> None:
        """End the host if it lives; its exit asks for another sweep. Else end what it left."""
        if self._handle is not None and not self._handle.over:
            self._handle.kill()
            await asyncio.sleep(KILL_PATIENCE_S)
            if self._handle is not None and not self._handle.over:
                self._handle.abandon()
                self.post(ev.HostDied("it cannot be killed"))
            return
        ending = self._state.ending
        left_s = LEFTOVER_GRACE_S if ending is None else ending.kill_at - time.monotonic()
        stuck = await self._end_what_is_left(min(LEFTOVER_GRACE_S, max(0.0, left_s)))
        self.post(ev.Swept(tree.unkillable(stuck)))

    async def _end_what_is_left(self, grace_s: float) -> tuple[tree.StuckProcess, ...]:
        """Of a host that is gone; answers what SIGKILL did not end."""
        launcher = self._launcher
        marks = tree.Marks(token=launcher.token, sessions=self._witness.workers, cgroup=launcher.cgroup)
        # What the host has judged unkillable gets no second bound.
        bound_s = SECOND_LOOK_S if self._state.unkillable else tree.KILL_BOUND_S
        stuck = await self._sweeper.end(marks, grace_s=grace_s, bound_s=bound_s)
        self._handle = None
        self._witness.clear()
        return stuck

    def _failed(self, fault: BaseException) -> None:
        """Nothing would follow on what failed beside: it is a fault of the group's life."""
        self._fault = fault
        self._wake.set()

    def _facts(self) -> dict[str, object]:
        return {
            "run_id": self._spec.run_id,
            "incarnation": self._spec.incarnation,
            "role": self.role,
            "phase": self._state.phase.value,
            "round": self._state.round,
            "reason": self._state.reason,
        }


def _new_state(spec: wire.HostSpec) -> GroupState:
    return GroupState(role=spec.role, local_world_size=spec.local_world_size, stop_grace=spec.stop_grace_s)
