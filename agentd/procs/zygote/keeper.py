"""Keeps a zygote warm over the rounds of a group, and says why one is not used.

A zygote that dies harms no worker: another one is made in the background. One that cannot be, because an
import fails, hangs or leaves what no fork survives, is not tried again. In either case workers are to be
started in the ordinary way.
"""

from __future__ import annotations

from agentd.procs import procfs
from agentd.procs.identity import ProcessIdentity
from agentd.procs.procfs import ProcessStat
from agentd.procs.spawn import SpawnError
from agentd.procs.waiter import Waiter
from agentd.procs.zygote.forked import Adoption, Blank
from agentd.procs.zygote.process import Recipe, Zygote

IMPORT_LIMIT_S = 120.0
"""How long the imports may take."""
FORK_LIMIT_S = 10.0
"""How long blanks may take to be there."""
MOST_FAILURES = 3
"""Zygotes in a row that ended before they were of use; then none is tried any more."""
LASTED_S = 60.0
"""One that was ready for so long was of use, also if no worker was wanted."""
PAUSE_S = 1.0
"""Between two starts at least, more after each failure."""
REAP_PAUSE_S = 0.02
END_LIMIT_S = 5.0


class Keeper:
    """Of one group's workers. All waiting is in the owner's waiter."""

    def __init__(
        self,
        waiter: Waiter,
        recipe: Recipe,
        *,
        import_limit_s: float = IMPORT_LIMIT_S,
        fork_limit_s: float = FORK_LIMIT_S,
    ) -> None:
        self._waiter = waiter
        self._recipe = recipe
        self._limit_s = import_limit_s
        self._fork_limit_s = fork_limit_s
        self._adoption = Adoption()
        self._zygote: Zygote | None = None
        self._former: list[Zygote] = []
        """Those that are over, until nothing of them is left to reap."""
        self._given: list[Blank] = []
        self._took_s: float | None = None
        """How long the imports took the first time."""
        self._failures = 0
        self._next_try = 0.0
        self._wanted = 0
        self._open = False
        self._given_up = False
        self._taken: tuple[Blank, ...] = ()
        """What the last workers were to be forked from."""
        self._problem = ""
        self._last_words = ""

    def start(self) -> None:
        """Begin to import, in the background. Harmless when repeated."""
        if not self._open:
            self._open = True
            self._waiter.add_pump(self._pump)
            self._tend(self._waiter.now())

    def stock(self, count: int) -> None:
        """See to it that so many blanks are there when they are wanted, once the zygote is ready."""
        self._wanted = count
        self._tend(self._waiter.now())

    def take(self, count: int) -> list[Blank]:
        """Blanks for so many workers, fewer with a `problem`. Waits for them, and for imports under way.

        That wait is never longer than the imports that each worker would do for itself.
        """
        self.start()
        zygote = self._awaited_zygote()
        blanks: list[Blank] = []
        if zygote is not None:
            zygote.fork(count - zygote.waiting())
            limit = self._waiter.now() + self._fork_limit_s
            settled = self._waiter.wait_until(lambda: zygote.settled or zygote.over, limit)
            if settled:
                blanks = zygote.take(count)
                self._failures = 0 if blanks else self._failures
            else:
                # It is stopped, or a fork of it is: the next round must not wait for it again.
                zygote.kill(f"it did not fork within {self._fork_limit_s:g} s")
        self._given = [blank for blank in self._given if not blank.reaped()] + blanks
        self._wanted, self._taken = 0, tuple(blanks)
        self._problem = "" if len(blanks) == count else self._why(zygote, f"{len(blanks)} of {count}")
        return blanks

    @property
    def problem(self) -> str:
        """Why not all of the last workers could be forked; empty: they could."""
        lost = sum(blank.lost for blank in self._taken)
        return self._problem or (
            f"{lost} of {len(self._taken)} forks ended before they began" if lost else ""
        )

    def spares(self, stat: ProcessStat) -> bool:
        """Whether a process is a zygote, a blank, or on its way to be one: nothing that workers left."""
        leader = next((one for one in self.sessions() if one.pid == stat.session), None)
        if leader is None or stat.start_time < leader.start_time:
            return False
        return not procfs.is_finished(stat) or stat.pid in self.pids()

    def sessions(self) -> frozenset[ProcessIdentity]:
        """The leaders of the sessions of zygotes and blanks, in which no worker is."""
        return frozenset(zygote.identity for zygote in self._zygotes())

    def pids(self) -> frozenset[int]:
        """Zygotes and blanks: children that are reaped here."""
        blanks = [blank for zygote in self._zygotes() for blank in zygote.blanks] + self._given
        known = {blank.identity.pid for blank in blanks if blank.identity is not None and not blank.given}
        return frozenset(known | {zygote.identity.pid for zygote in self._zygotes()})

    def close(self) -> None:
        """End the zygote and its blanks, and wait until they are gone. `start` begins anew."""
        if not self._open:
            return
        self._open = False
        self._waiter.remove_pump(self._pump)
        for blank in self._given:
            blank.close()
        if self._zygote is not None:
            self._zygote.kill("it was not needed any more")
            self._former.append(self._zygote)
            self._zygote = None
        ends = self._waiter.now() + END_LIMIT_S
        while not self._all_reaped() and self._waiter.now() < ends:
            self._waiter.wait(min(ends, self._waiter.now() + REAP_PAUSE_S / 10))

    # --- within

    def _zygotes(self) -> list[Zygote]:
        return [*self._former, *([] if self._zygote is None else [self._zygote])]

    def _awaited_zygote(self) -> Zygote | None:
        """The one that is ready, or will be in time."""
        zygote = self._zygote
        if zygote is not None and not zygote.ready:
            self._waiter.wait_until(lambda: zygote.ready or zygote.over, self._patience_ends(zygote))
            self._tend(self._waiter.now())
        return zygote if zygote is not None and zygote.ready else None

    def _patience_ends(self, zygote: Zygote) -> float:
        known_s = self._limit_s if self._took_s is None else 2 * self._took_s + PAUSE_S
        return zygote.started_at + min(self._limit_s, known_s)

    def _why(self, zygote: Zygote | None, share: str) -> str:
        if zygote is not None:
            return f"only {share} workers could be forked{': ' if zygote.problem else ''}{zygote.problem}"
        if self._zygote is not None:
            return "the imports are not done yet"
        return self._last_words

    def _pump(self, now: float) -> float | None:
        self._tend(now)
        wishes = []
        if not self._all_reaped():
            wishes.append(now + REAP_PAUSE_S)
        if self._zygote is not None and not self._zygote.ready:
            wishes.append(self._zygote.started_at + self._limit_s)
        if self._zygote is None and not self._given_up:
            wishes.append(self._next_try)
        return min(wishes, default=None)

    def _tend(self, now: float) -> None:
        """Whatever is due by now."""
        zygote = self._zygote
        if zygote is None:
            if self._open and not self._given_up and now >= self._next_try:
                self._begin(now)
            return
        if not (zygote.ready or zygote.over) and now >= zygote.started_at + self._limit_s:
            names = ", ".join(self._recipe.modules)
            zygote.refused = True
            zygote.kill(f"to import {names} took longer than {self._limit_s:g} s")
        if zygote.over:
            self._zygote = None
            self._former.append(zygote)
            self._failed(zygote, now)
        elif zygote.ready:
            if self._took_s is None:
                self._took_s = zygote.ready_at - zygote.started_at
            wanted, self._wanted = self._wanted, 0
            zygote.fork(wanted - zygote.waiting())

    def _begin(self, now: float) -> None:
        self._next_try = now + PAUSE_S
        try:
            self._zygote = Zygote(self._waiter, self._recipe, self._adoption)
        except OSError as error:
            self._last_words = str(error)
            self._give_up_later(now, for_good=isinstance(error, SpawnError))

    def _failed(self, zygote: Zygote, now: float) -> None:
        self._last_words = f"the zygote is gone: {zygote.problem}"
        if zygote.refused:
            self._last_words = zygote.problem
        if zygote.ready_at and now - zygote.ready_at > LASTED_S:
            self._failures = 0
        at_once = bool(zygote.ready_at) and not self._failures
        self._give_up_later(now, for_good=zygote.refused)
        if at_once:
            self._next_try = zygote.started_at + PAUSE_S

    def _give_up_later(self, now: float, *, for_good: bool) -> None:
        self._failures += 1
        self._given_up = for_good or self._failures >= MOST_FAILURES
        self._next_try = now + PAUSE_S * 2**self._failures

    def _all_reaped(self) -> bool:
        self._former = [zygote for zygote in self._former if not zygote.reaped()]
        self._given = [
            blank for blank in self._given if not (blank.lost and blank.reaped()) and not blank.given
        ]
        return not self._former and not any(blank.lost for blank in self._given)
