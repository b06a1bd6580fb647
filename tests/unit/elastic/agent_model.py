"""What an elastic agent shall do, told once more as plain rules over a script, without an agent.

A script says what happens: how rendezvous end, what becomes of workers, who joins, when the agent is stopped.
Workers end at whole seconds, the whole run at .25, stops come at .5 and newcomers at .75, so that no two
things happen at one moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentd.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
)

WORKERS = 2
GRACE_S = 30.0

ERRORS: dict[str, type[Exception]] = {
    "timeout": RendezvousTimeoutError,
    "closed": RendezvousClosedError,
    "not needed": RendezvousGracefulExitError,
}


@dataclass(frozen=True)
class Attempt:
    """One rendezvous and, if it succeeds, what becomes of the workers that are started then."""

    takes: int
    ends: str
    """"formed", "cannot start", or one of ERRORS."""
    outcome: str | None
    """"fail", "succeed", "unhealthy", "unknown"; None: they run for ever."""
    after: int
    """Seconds from the last whole one before their start to their outcome."""
    stop_takes: int
    """Seconds the workers need to end when they are stopped, unless they are killed."""


@dataclass(frozen=True)
class Script:
    shared: bool
    """The rendezvous coordinates; else each agent decides alone, as in torch."""
    budget: int
    attempts: Sequence[Attempt]
    """When they are used up, workers succeed at once."""
    newcomers: Sequence[float] = ()
    stops: Sequence[tuple[float, float]] = ()
    """Moment and grace of each request."""
    run_ends: float | None = None
    """When the run as a whole is declared FAILED; shared only."""

    def attempt(self, number: int) -> Attempt:
        if number < len(self.attempts):
            return self.attempts[number]
        return Attempt(takes=0, ends="formed", outcome="succeed", after=1, stop_takes=0)


@dataclass
class Account:
    """What is compared."""

    end: str = ""
    """A WorkerState's name, or that of an exception."""
    rounds: list[int] = field(default_factory=list)
    """The restart count that each round's workers were told."""
    events: list[str] = field(default_factory=list)
    """The states of all events that were recorded."""
    seconds: float = 0.0


class Over(Exception):
    """The run ended."""


class Model:
    """Follows a script to its end."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.account = Account()
        self.now = 0.0
        self.failures = 0
        self.running = False
        self.stop_at = min((moment for moment, _ in script.stops), default=math.inf)
        shared_end = script.run_ends if script.shared else None
        self.run_ends_at = math.inf if shared_end is None else shared_end

    def follow(self) -> Account:
        try:
            number = 0
            while True:
                self.one_attempt(self.script.attempt(number))
                number += 1
        except Over:
            return self.account

    def one_attempt(self, attempt: Attempt) -> None:
        if self.stop_at <= self.now:
            self.end("STOPPED")
        self.rendezvous(attempt)
        if not self.script.shared:
            self.account.events.append("ASSIGN_WORKER_RANKS")
        if self.stop_at <= self.now:
            self.end("STOPPED")
        if attempt.ends == "cannot start":
            self.cannot_start()
            return
        self.running = True
        self.account.rounds.append(self.failures)
        self.account.events += ["START"] * WORKERS
        self.now, what = self.first_happening(attempt)
        self.after(what, attempt.stop_takes)
        self.running = False

    def rendezvous(self, attempt: Attempt) -> None:
        self.account.events.append("RENDEZVOUS")
        formed = self.now + attempt.takes
        interrupted = min(self.stop_at, self.run_ends_at)
        if self.script.shared and interrupted < formed:
            self.now = max(self.now, interrupted)
            self.end("STOPPED" if self.stop_at < self.run_ends_at else "FAILED")
        self.now = formed
        if attempt.ends == "not needed":
            self.end("SUCCEEDED")
        if attempt.ends in ERRORS:
            self.end(ERRORS[attempt.ends].__name__)

    def cannot_start(self) -> None:
        """An agent alone gives up; a rendezvous that coordinates counts it as a failure of the round."""
        if not self.script.shared or self.failures == self.script.budget:
            self.end("OSError")
        self.failures += 1

    def first_happening(self, attempt: Attempt) -> tuple[float, str]:
        happenings = [(self.stop_at, "stop"), (self.run_ends_at, "run ends")]
        happenings += [(moment, "newcomer") for moment in self.script.newcomers if moment > self.now]
        if attempt.outcome is not None:
            happenings.append((math.floor(self.now) + attempt.after, attempt.outcome))
        moment, what = min(happenings)
        return max(moment, self.now), what

    def after(self, what: str, stop_takes: int) -> None:
        if what == "succeed":
            self.end("SUCCEEDED")
        # A stop has a grace of its own, also a longer one.
        self.stop_workers(stop_takes, math.inf if what == "stop" else GRACE_S)
        ends = {"stop": "STOPPED", "run ends": "FAILED", "unknown": "RuntimeError"}
        if what in ends:
            self.end(ends[what])
        if what in ("fail", "unhealthy"):
            if self.failures == self.script.budget:
                self.end("FAILED")
            self.failures += 1

    def stop_workers(self, takes: int, grace_s: float) -> None:
        begin = self.now
        graces = [moment + grace for moment, grace in self.script.stops if moment <= begin + takes]
        self.now = max(begin, min(begin + takes, begin + grace_s, *graces))

    def end(self, how: str) -> None:
        self.account.end, self.account.seconds = how, self.now
        returned = how in ("SUCCEEDED", "FAILED", "STOPPED")
        if self.running and returned:
            self.account.events += ["SUCCEEDED" if how == "SUCCEEDED" else "TERMINATED"] * WORKERS
        self.account.events.append(how if returned else "FAILED")
        raise Over
