"""Find and end every process of a group, also those that left their parent, their session or both.

A process belongs to a group by its cgroup, by descent, by its session, or by the group's token in the
environment it was started with. Each is signalled through a pidfd after its start time was compared, so no
stranger is ever hit. Without a cgroup, a process that has left all of these escapes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Container, Iterable

from agentd.procs import cgroups, descent, procfs
from agentd.procs.identity import ProcessIdentity, send_signal
from agentd.procs.procfs import ProcessStat
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

TOKEN_VARIABLE = "AGENTD_GROUP_TOKEN"
KILL_BOUND_S = 5.0
"""How long after SIGKILL a process that is still there counts as unkillable."""
FIRST_STEP_S = 0.002
LAST_STEP_S = 0.1

_STATE_LOOKS = 3
_STATE_PAUSE_S = 0.002
_KERNEL_THREADS = 2
"""The parent of those: they have no environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What the processes of a group have in common."""

    token: str = ""
    """Value of AGENTD_GROUP_TOKEN. Random, so that it never matches by chance."""
    sessions: frozenset[ProcessIdentity] = frozenset()
    """The leaders of its sessions, dead or alive."""
    ancestors: frozenset[int] = frozenset()
    """Everything below these pids belongs to it; they themselves do not."""
    cgroup: str = ""
    """A cgroup folder that holds nothing else, but perhaps the caller."""
    not_before: int = 0
    """Start time (see `ProcessIdentity`) before which no process can have the token."""


@dataclass(frozen=True, slots=True)
class StuckProcess:
    """A process that SIGKILL did not end, and where in the kernel it hangs."""

    pid: int
    wait_channel: str


def unkillable(processes: Iterable[StuckProcess]) -> str:
    """One clause for people: each pid with the place in the kernel where it hangs. Empty: there is none."""
    named = ", ".join(f"{each.pid} ({each.wait_channel or 'where is unknown'})" for each in processes)
    return f"SIGKILL did not end {named}" if named else ""


def find(marks: Marks) -> list[ProcessStat]:
    """The group's living processes, but never the caller's own."""
    everything = {stat.pid: stat for stat in procfs.processes()}
    pids = cgroups.members(marks.cgroup) | _below(marks.ancestors, everything.values())
    sessions = {leader.pid: leader for leader in marks.sessions if _still_its_session(leader, everything)}
    own = os.getpid()
    return [
        stat
        for stat in everything.values()
        if stat.pid != own
        and (stat.pid in pids or _in_session(stat, sessions) or _has_token(stat, marks))
        and not procfs.is_finished(stat)
    ]


class Sweeper:
    """Ends a group step by step, without waiting: a signal, a grace for each process, SIGKILL, proof."""

    def __init__(
        self,
        marks: Callable[[], Marks],
        deadline_of: Callable[[ProcessStat], float],
        signum: int = signal.SIGTERM,
        was_signalled: Callable[[ProcessStat], bool] = lambda _stat: False,
        kill_bound_s: float = KILL_BOUND_S,
        look: Callable[[Marks], list[ProcessStat]] = find,
    ) -> None:
        """`deadline_of` tells until when, on the monotonic clock, a process may take; `look` who is left."""
        self._marks = marks
        self._deadline_of = deadline_of
        self._signum = signum
        self._was_signalled = was_signalled
        self._kill_bound_s = kill_bound_s
        self._look = look
        self._asked: set[ProcessIdentity] = set()
        self._killed_at: dict[ProcessIdentity, float] = {}
        self._empty_looks = 0
        self._pause = FIRST_STEP_S
        self.found: list[ProcessStat] = []
        """Whom the last step found."""
        self.gone = False
        """Nothing is left."""
        self.stuck: tuple[StuckProcess, ...] = ()
        """What is left in spite of SIGKILL. The sweep is over then, too."""

    def step(self, now: float) -> float:
        """Look, signal what is due, and answer when to look again."""
        marks = self._marks()
        found = self.found = self._look(marks)
        if not found:
            return self._count_empty_look(now)
        self._empty_looks = 0
        if all(now >= self._deadline_of(stat) for stat in found):
            # One by one they could fork faster than they are found.
            cgroups.kill(marks.cgroup)
        wish = now + self._pause
        self._pause = min(self._pause * 2, LAST_STEP_S)
        for stat in found:
            wish = min(wish, max(now, self._treat(stat, now)))
        self._judge(found, now)
        return wish

    def _treat(self, stat: ProcessStat, now: float) -> float:
        identity = ProcessIdentity(stat.pid, stat.start_time)
        deadline = self._deadline_of(stat)
        if now >= deadline:
            self._killed_at.setdefault(identity, now)
            send_signal(identity, signal.SIGKILL)
            return now + self._pause
        if identity not in self._asked:
            self._asked.add(identity)
            if not self._was_signalled(stat):
                send_signal(identity, self._signum)
                send_signal(identity, signal.SIGCONT)
        return deadline

    def _count_empty_look(self, now: float) -> float:
        # A process may be born behind the reader's back while its parent dies before it is read: where
        # anything was found, nothing must be found twice.
        self._empty_looks += 1
        self.gone = self._empty_looks > (1 if self._asked or self._killed_at else 0)
        return now

    def _judge(self, found: list[ProcessStat], now: float) -> None:
        overdue_s = now - max(self._deadline_of(stat) for stat in found)
        if overdue_s < 0:
            return
        ages = [now - self._killed_at[ProcessIdentity(stat.pid, stat.start_time)] for stat in found]
        # What forks faster than it is killed has young processes for ever: it gets twice the bound, no more.
        if min(ages) >= self._kill_bound_s or overdue_s >= 2 * self._kill_bound_s:
            self.stuck = tuple(StuckProcess(stat.pid, procfs.wait_channel(stat.pid)) for stat in found)


def sweep(
    marks: Marks, *, grace_s: float, waiter: Waiter | None = None, kill_bound_s: float = KILL_BOUND_S
) -> tuple[StuckProcess, ...]:
    """End the whole group and prove it, waiting for that; answers what could not be ended.

    `kill_bound_s`: how long SIGKILL may take.
    """
    deadline = time.monotonic() + grace_s
    sweeper = Sweeper(lambda: marks, lambda _stat: deadline, kill_bound_s=kill_bound_s)
    with contextlib.ExitStack() as stack:
        waiter = waiter or stack.enter_context(Waiter())
        while not (sweeper.gone or sweeper.stuck):
            again = sweeper.step(time.monotonic())
            waiter.wait_until(lambda moment=again: time.monotonic() >= moment, again)  # type: ignore[misc]
    return sweeper.stuck


def end_group(
    marks: Marks, *, grace_s: float, kill_bound_s: float = KILL_BOUND_S
) -> tuple[StuckProcess, ...]:
    """`sweep`, and its cgroup is removed: nobody of the group is there any more to need it."""
    stuck = sweep(marks, grace_s=grace_s, kill_bound_s=kill_bound_s)
    if not stuck:
        cgroups.remove(marks.cgroup)
    return stuck


def token_of(pid: int) -> str:
    """The token that a process was started with; empty if it has none, or is not ours to read."""
    prefix = f"{TOKEN_VARIABLE}=".encode()
    found = (each for each in procfs.read_environ(pid).split(b"\0") if each.startswith(prefix))
    return next(found, prefix)[len(prefix) :].decode("ascii", "replace")


def reap_orphans(keep: Container[int], spared: descent.Judge = lambda _stat: False) -> None:
    """Reap dead children of this process that are not in `keep`: what a subreaper was left by others."""
    for pid in descent.children(os.getpid()) or ():
        stat = None if pid in keep else procfs.read_stat(pid)
        if stat is not None and not spared(stat):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _in_session(stat: ProcessStat, sessions: dict[int, ProcessIdentity]) -> bool:
    leader = sessions.get(stat.session)
    return leader is not None and stat.start_time >= leader.start_time


def _still_its_session(leader: ProcessIdentity, everything: dict[int, ProcessStat]) -> bool:
    # While a session has members its id is given to nobody else, so another holder means it is long empty.
    holder = everything.get(leader.pid)
    return holder is None or holder.start_time == leader.start_time


def _has_token(stat: ProcessStat, marks: Marks) -> bool:
    if not marks.token or stat.start_time < marks.not_before:
        return False
    if _hangs(stat):
        # Its environment may not be readable before it goes on, and whoever reads it hangs as well.
        return False
    wanted = f"{TOKEN_VARIABLE}={marks.token}".encode()
    return wanted in procfs.read_environ(stat.pid).split(b"\0")


def _hangs(stat: ProcessStat) -> bool:
    """Whether it is in state D, and not only for the blink of an eye."""
    for _ in range(_STATE_LOOKS):
        if stat.state != "D" or stat.parent == _KERNEL_THREADS:
            return False
        time.sleep(_STATE_PAUSE_S)
        now = procfs.read_stat(stat.pid)
        if now is None or now.start_time != stat.start_time:
            return False
        stat = now
    return True


def _below(ancestors: Iterable[int], everything: Iterable[ProcessStat]) -> set[int]:
    roots = set(ancestors)
    if not roots:
        return set()
    children: dict[int, list[int]] = {}
    for stat in everything:
        children.setdefault(stat.parent, []).append(stat.pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in found:
                found.add(pid)
                todo.append(pid)
    return found - roots
