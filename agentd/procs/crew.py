"""The processes of one round: taken one by one, watched, stopped and swept as one.

Nothing here waits. A crew lives in its owner's `Waiter`: exits are callbacks, escalation is a pump, and the
owner waits for `gone` or `stuck`. Leaders stay unreaped until everything of the crew is gone, which keeps
their session ids from strangers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from agentd.procs import descent, procfs, tree
from agentd.procs.ends import Ends
from agentd.procs.exits import ExitInfo, ExitWatch
from agentd.procs.identity import ProcessIdentity
from agentd.procs.procfs import ProcessStat
from agentd.procs.tree import KILL_BOUND_S, Marks, StuckProcess, Sweeper
from agentd.procs.waiter import Waiter

LEFTOVER_GRACE_S = 2.0
"""What a process gets whose leader ended by itself."""
ORPHAN_PAUSE_S = 5.0
LAST_LOOK_PAUSE_S = 0.01
"""Between two looks for the exit of a leader that can be found by nothing but its pid."""


class Leader(Protocol):
    """A started process that leads a session of its own, or is about to; `Child` is one."""

    @property
    def identity(self) -> ProcessIdentity:
        """Who it is."""

    @property
    def pid(self) -> int:
        """Its pid, and the id of its session and process group."""

    @property
    def started_at(self) -> float:
        """Seconds since the epoch."""

    def signal_group(self, signum: int) -> None:
        """Signal its process group, or it alone while it has none. Never reaches a stranger."""

    def watch(self, waiter: Waiter, on_exit: Callable[[ExitInfo], object]) -> ExitWatch:
        """Have `on_exit` called from the waiter when it has ended. It is not reaped by that."""

    def reap(self) -> None:
        """Take its exit status, if it has ended, and give back what it holds here."""


class UnkillableWorkers(Exception):
    """Processes are there `KILL_BOUND_S` after SIGKILL: the kernel holds them, nothing here can help."""

    def __init__(self, stuck: Sequence[StuckProcess]) -> None:
        self.pids = tuple(process.pid for process in stuck)
        self.wait_channels = tuple(process.wait_channel for process in stuck)
        super().__init__(
            f"{tree.unkillable(stuck)}: held in the kernel, most often by storage or a device. "
            "Restart the node, or what it hangs on."
        )


class Crew:
    """Processes under one token, each the leader of its own session."""

    def __init__(
        self,
        waiter: Waiter,
        on_exit: Callable[[int, ExitInfo], object],
        *,
        token: str = "",
        cgroup: str = "",
        ancestors: Collection[int] = (),
        spared: descent.Judge = lambda _stat: False,
    ) -> None:
        """`on_exit(index, exit)` is called from inside a wait, once for each leader.

        `ancestors`: pids everything below which belongs to the crew. Only a process that starts nothing else
        may name its own; if that adopts what its descendants leave, they alone are looked through, and not
        all processes of the machine. `spared`: processes that are nobody's leftover, nor what is below them.
        """
        self._waiter = waiter
        self._on_exit = on_exit
        self._token = token
        self._cgroup = cgroup
        self._ancestors = frozenset(ancestors)
        self._spared = spared
        self._by_descent = False
        """Whether all that there can be descends from this process."""
        self._ends = Ends(waiter, self._step_now)
        self._children: dict[int, Leader] = {}
        self._watches: dict[int, ExitWatch] = {}
        self._complete = False
        self._signum: int = signal.SIGTERM
        self._deadline: float | None = None
        self._sweeper: Sweeper | None = None
        self._met: set[ProcessIdentity] = set()
        """Whom the sweeper has found."""
        self._last_looks_end: float | None = None
        self._next_step = 0.0
        self._next_orphans = waiter.now() + ORPHAN_PAUSE_S
        self.exits: dict[int, ExitInfo] = {}
        self.torn_down: set[int] = set()
        """Leaders that were signalled before they ended."""
        self.gone = False
        """All have ended, nothing of theirs is left."""
        self.stuck: tuple[StuckProcess, ...] = ()
        waiter.add_pump(self._pump)

    @property
    def children(self) -> Mapping[int, Leader]:
        """The leaders by index, dead ones too."""
        return self._children

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._deadline is not None

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen: gone, or stuck."""
        return self.gone or bool(self.stuck)

    def adopt(self, index: int, leader: Leader) -> None:
        """Take a leader that was started just now."""
        self._children[index] = leader
        self._watches[index] = leader.watch(self._waiter, lambda info: self._ended(index, info))

    def complete(self) -> None:
        """No further leader comes: when all have ended, what they left is ended too."""
        self._complete = True

    def stop(self, signum: int, deadline: float) -> None:
        """End everything: `signum` now, SIGKILL at the monotonic `deadline`. Again only shortens that."""
        self._complete = True
        if self._deadline is not None:
            self._deadline = min(self._deadline, deadline)
            self._next_step = 0.0
            return
        self._signum, self._deadline = signum, deadline
        # Those that ended before the signal did so by themselves, though nobody was told yet.
        self._look()
        self.torn_down.update(self._watches)
        self.send_signal(signum, self._watches)
        self.send_signal(signal.SIGCONT, self._watches)

    def send_signal(self, signum: int, indices: Collection[int]) -> tuple[int, ...]:
        """Signal the process groups of these leaders; answers those that were alive."""
        alive = tuple(index for index in self._watches if index in indices)
        for index in alive:
            self._children[index].signal_group(signum)
        return alive

    def close(self) -> None:
        """Watch no longer and reap what can be reaped. Ends nothing: that is `stop`."""
        self._waiter.remove_pump(self._pump)
        self._ends.close()
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        for child in self._children.values():
            child.reap()

    def _ended(self, index: int, info: ExitInfo) -> None:
        del self._watches[index]
        self.exits[index] = info
        self._next_step = 0.0
        self._on_exit(index, info)

    def _look(self) -> None:
        for watch in tuple(self._watches.values()):
            watch.look()

    def _pump(self, now: float) -> float | None:
        if self.settled:
            return None
        if not self._complete or (self._watches and (self._deadline is None or now < self._deadline)):
            return self._earliest(self._deadline if self._complete else None, self._tend_orphans(now))
        if now < self._next_step:
            return self._next_step
        if self._sweeper is None:
            # At once for whole groups: what forks meanwhile is hit as well.
            self.send_signal(signal.SIGKILL, self._watches)
            self._by_descent = os.getpid() in self._ancestors and descent.is_known()
            self._sweeper = Sweeper(
                self._marks, self._deadline_of, self._signum, self._was_signalled, look=self._left
            )
        self._next_step = self._sweeper.step(now)
        self._ends.watch(self._sweeper.found)
        self._met.update(ProcessIdentity(stat.pid, stat.start_time) for stat in self._sweeper.found)
        if self._sweeper.gone or self._sweeper.stuck:
            self._look()
        if self._sweeper.gone:
            self._look_last(now)
        elif self._sweeper.stuck:
            self._settle(self._sweeper.stuck)
        return now if self.settled else self._next_step

    def _left(self, marks: Marks) -> list[ProcessStat]:
        if not self._by_descent:
            return [stat for stat in tree.find(marks) if not self._spared(stat)]
        return descent.living({self._children[index].pid for index in self.exits}, self._spared)

    def _step_now(self) -> None:
        self._next_step = 0.0

    def _look_last(self, now: float) -> None:
        """Nothing is found any more. The exit of a leader that never had a session may be still to come."""
        if self._last_looks_end is None:
            self._last_looks_end = now + KILL_BOUND_S
        if self._watches and now < self._last_looks_end:
            self._next_step = now + LAST_LOOK_PAUSE_S
            return
        pids = [self._children[index].pid for index in self._watches]
        self._settle(tuple(StuckProcess(pid, procfs.wait_channel(pid)) for pid in pids))

    def _settle(self, stuck: tuple[StuckProcess, ...]) -> None:
        self.gone, self.stuck = not stuck, stuck
        self.close()
        self._reap_orphans()

    def _tend_orphans(self, now: float) -> float | None:
        if not self._ancestors:
            return None
        if now >= self._next_orphans:
            self._next_orphans = now + ORPHAN_PAUSE_S
            self._reap_orphans()
        return self._next_orphans

    def _reap_orphans(self) -> None:
        leaders = {child.pid for child in self._children.values()}
        if self._ancestors:
            tree.reap_orphans(leaders, self._spared)
        elif self._met:
            # Whoever forks workers adopts for moments, and may have got what others of the crew left.
            tree.reap_orphans(
                leaders, lambda stat: ProcessIdentity(stat.pid, stat.start_time) not in self._met
            )

    def _marks(self) -> Marks:
        leaders = [child.identity for child in self._children.values()]
        living = {self._children[index].pid for index in self._watches}
        return Marks(
            token=self._token,
            sessions=frozenset(leaders),
            ancestors=self._ancestors or frozenset(living),
            cgroup=self._cgroup,
            not_before=min((leader.start_time for leader in leaders), default=0),
        )

    def _deadline_of(self, stat: ProcessStat) -> float:
        """What was signalled keeps the whole grace; what its leader left behind gets a short one."""
        by_stop = self._deadline if self._deadline is not None else float("inf")
        index = self._index_of_session(stat.session)
        if index is None:
            last_exit = max((info.at for info in self.exits.values()), default=time.monotonic())
            return by_stop if self.torn_down else min(by_stop, last_exit + LEFTOVER_GRACE_S)
        if index in self.torn_down or index not in self.exits:
            return by_stop
        return min(by_stop, self.exits[index].at + LEFTOVER_GRACE_S)

    def _was_signalled(self, stat: ProcessStat) -> bool:
        """Whether its whole group got the stop's signal; a second one could cut its clean-up short."""
        return any(self._children[index].pid == stat.group for index in self.torn_down)

    def _index_of_session(self, session: int) -> int | None:
        return next((index for index, child in self._children.items() if child.pid == session), None)

    @staticmethod
    def _earliest(*moments: float | None) -> float | None:
        return min((moment for moment in moments if moment is not None), default=None)
