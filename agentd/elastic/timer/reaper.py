"""Ends processes whose timers ran out: first their stacks, then the signal, again until it arrived.

Nothing waits here. Each process is a generator of steps; those that run out about together are all looked at
before the first is killed, because its death makes the agent end the others.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from agentd.api.signals import signal_name
from agentd.elastic.timer.book import Timer
from agentd.procs import stacks
from agentd.procs.identity import is_alive, send_signal
from agentd.procs.lineage import lineage
from agentd.procs.stacks import Helpers, Stacks, Steps
from agentd.quickdata import dataclass

__all__ = ["STACKS_FILE", "Reaper"]

STACKS_FILE = "stacks.txt"
RETRY_S = 1.0
COMPANY_S = 0.5
"""How long one whose time is up waits for others whose time is about to be: peers hang together."""
MOST_REMEMBERED = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kill:
    """What was done, for who asks why a worker died."""

    pid: int
    scope: str
    length_s: float
    stacks_file: str


class _Reaping:
    """One process on its way: looked at, waiting for the others, killed."""

    def __init__(self, timer: Timer, folder: str) -> None:
        self.timer = timer
        self.folder = folder
        self.ancestors = tuple(lineage(timer.owner.pid))
        self.stacks = Stacks()
        self.collected = False
        self.killed = False
        self.begun = False
        self.wake_at = float("-inf")


class Reaper:
    """The processes that are being ended. Its owner calls `pump` again and again."""

    def __init__(
        self,
        folder_of: Callable[[int], str],
        on_killed: Callable[[Timer], object],
        next_due: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        """`folder_of(pid)`: where its stacks go, empty for nowhere. `on_killed`: the signal was sent.

        `next_due`: when the next timer runs out.
        """
        self._folder_of = folder_of
        self._on_killed = on_killed
        self._next_due = next_due
        self._helpers = Helpers()
        self._under_way: dict[int, _Reaping] = {}
        self._steps: dict[int, Steps[None]] = {}
        self._kills: dict[int, _Kill] = {}

    @property
    def pids(self) -> frozenset[int]:
        """Those under way."""
        return frozenset(self._under_way)

    def begin(self, timer: Timer, now: float) -> None:
        """End the process that set this timer by the signal it names."""
        pid = timer.owner.pid
        reaping = self._under_way[pid] = _Reaping(timer, self._folder_of(pid))
        self._steps[pid] = self._reap(reaping, now)

    def pump(self, now: float) -> float | None:
        """Do what is due; answers when there is more to do, `None` if nothing is under way."""
        self._helpers.tend()
        for pid, reaping in tuple(self._under_way.items()):
            if now >= reaping.wake_at:
                self._step(pid, reaping, now)
        return min((reaping.wake_at for reaping in self._under_way.values()), default=None)

    def explain(self, pid: int) -> str:
        """Why this process or one below it was killed, one sentence; empty if none was."""
        kill = self._kills.get(pid)
        if kill is None:
            return ""
        whom = "it" if kill.pid == pid else f"process {kill.pid} below it"
        after = f"{round(kill.length_s, 1):g} s"
        sentence = f"the watchdog ended {whom}: timer {kill.scope!r} expired {after} after it was set"
        return f"{sentence}; its stacks are in {kill.stacks_file}" if kill.stacks_file else sentence

    def close(self) -> None:
        """Kill at once whoever was still looked at: their time was up before. Ends every helper."""
        for pid, reaping in self._under_way.items():
            self._steps[pid].close()
            self._kill(reaping)
            self._write(reaping)
        self._under_way.clear()
        self._steps.clear()
        self._helpers.close()

    def _step(self, pid: int, reaping: _Reaping, now: float) -> None:
        steps = self._steps[pid]
        try:
            # A generator that has not begun takes no value: it was made with the time.
            pause = steps.send(now) if reaping.begun else next(steps)
            reaping.begun, reaping.wake_at = True, now + pause
        except StopIteration:
            del self._under_way[pid], self._steps[pid]
        except Exception:
            log.exception("looking at process %d failed: it is killed without", pid)
            self._steps[pid] = self._finish(reaping)
            reaping.collected, reaping.begun, reaping.wake_at = True, False, now + stacks.LOOK_S

    def _reap(self, reaping: _Reaping, now: float) -> Steps[None]:
        deadline, company = now + stacks.COLLECT_BOUND_S, now + COMPANY_S
        owner = reaping.timer.owner
        if reaping.folder:
            reaping.stacks = yield from stacks.collect(owner, now, self._helpers)
        reaping.collected = True
        now = yield 0.0
        while now < deadline and (
            not self._all_collected() or (now < company and self._next_due() <= company)
        ):
            now = yield stacks.LOOK_S
        if reaping.folder and reaping.timer.request.signal == signal.SIGKILL and not reaping.stacks.python:
            yield from self._abort(reaping, now)
        yield from self._finish(reaping)

    def _all_collected(self) -> bool:
        return all(other.collected for other in self._under_way.values())

    def _finish(self, reaping: _Reaping) -> Steps[None]:
        owner, told = reaping.timer.owner, False
        while not self._kill(reaping) and is_alive(owner):
            if not told:
                log.error("process %d could not be signalled; it is tried again every second", owner.pid)
            told = True
            yield RETRY_S
        self._write(reaping)

    def _abort(self, reaping: _Reaping, now: float) -> Steps[None]:
        text = yield from stacks.abort(reaping.timer.owner, now)
        if text is None:
            return
        reaping.stacks = replace(
            reaping.stacks, python=text, source="faulthandler on SIGABRT" if text else ""
        )
        if not is_alive(reaping.timer.owner):
            self._tell(reaping, signal.SIGABRT)

    def _kill(self, reaping: _Reaping) -> bool:
        if reaping.killed:
            return True
        owner, signum = reaping.timer.owner, reaping.timer.request.signal
        # One that ended by itself meanwhile takes signals until it is reaped.
        if not is_alive(owner) or not send_signal(owner, signum):
            return False
        self._tell(reaping, signum)
        return True

    def _tell(self, reaping: _Reaping, signum: int) -> None:
        reaping.killed = True
        timer = reaping.timer
        log.warning("process %d got %s: its time is up", timer.owner.pid, signal_name(signum))
        path = str(Path(reaping.folder, STACKS_FILE)) if reaping.folder else ""
        kill = _Kill(timer.owner.pid, timer.request.scope_id, timer.length_s, path)
        self._remember(reaping.ancestors or (timer.owner.pid,), kill)
        self._on_killed(timer)

    def _remember(self, pids: Iterable[int], kill: _Kill) -> None:
        for pid in pids:
            # A process' own story comes before that of one below it.
            if pid == kill.pid or pid not in self._kills:
                self._kills[pid] = kill
        while len(self._kills) > MOST_REMEMBERED:
            del self._kills[next(iter(self._kills))]

    def _write(self, reaping: _Reaping) -> None:
        """After the kill: the disk a worker hangs on may be the one its logs are on."""
        if not reaping.folder:
            return
        timer = reaping.timer
        heading = (
            f"=== process {timer.owner.pid}: timer {timer.request.scope_id!r} expired "
            f"{round(timer.length_s, 1):g} s after it was set\n"
        )
        try:
            stacks.append(Path(reaping.folder, STACKS_FILE), f"{heading}{reaping.stacks.text()}\n")
        except OSError as error:
            log.warning("the stacks of process %d could not be written: %s", timer.owner.pid, error)
