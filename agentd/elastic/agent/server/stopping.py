"""Stopping an agent from outside: by a call from any thread, or by a signal to its process."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from agentd.elastic.multiprocessing.signals import SignalException
from agentd.quickdata import dataclass

__all__ = ["StopControl", "StopRequest", "StopRequested"]


class StopRequested(BaseException):
    """Ends whatever the agent waits for, on the way to stopping its workers.

    No Exception on purpose: a rendezvous handler that retries on errors must let it pass.
    """


@dataclass(frozen=True, slots=True)
class StopRequest:
    """What the workers get, and until when they may take it."""

    signal: int
    deadline: float
    """Monotonic; SIGKILL follows."""
    from_signal: int | None = None
    """The signal this process got, if that is what stops it."""

    def joined_by(self, later: StopRequest) -> StopRequest:
        """This request after another one: the grace only ever gets shorter."""
        return replace(
            self,
            deadline=min(self.deadline, later.deadline),
            from_signal=self.from_signal or later.from_signal,
        )

    def as_error(self) -> SignalException | None:
        """What `run` raises for it; `None` for a stop that no signal asked for."""
        return None if self.from_signal is None else SignalException.of(self.from_signal)


class StopControl:
    """Requests to stop one agent, from wherever they come, and how far each may interrupt what it does.

    Usually a request ends the wait the agent is in, by `StopRequested`. While workers are being stopped it
    only shortens that (`hasten`). Code that knows no `Waiter` can be interrupted by a signal alone.
    """

    def __init__(
        self,
        default_grace_s: float,
        hasten: Callable[[StopRequest], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default_grace_s = default_grace_s
        self._hasten = hasten
        self._clock = clock
        # Only ever appended to, which is atomic: a lock could be held by the very code a signal interrupts.
        self._requests: list[StopRequest] = []
        self._seen: StopRequest | None = None
        self.settling = False
        """Whether workers are being stopped."""
        self.in_foreign_code = False
        """Whether code runs that knows no `Waiter`: a rendezvous handler or store of somebody else."""

    def put(self, grace_s: float | None, signum: int, *, from_signal: bool = False) -> None:
        """Take a request; a second signal to the process leaves no grace. Safe from anywhere."""
        if grace_s is None:
            again = from_signal and any(request.from_signal for request in self._requests)
            grace_s = 0.0 if again else self._default_grace_s
        deadline = self._clock() + grace_s
        self._requests.append(StopRequest(signum, deadline, signum if from_signal else None))

    @property
    def request(self) -> StopRequest | None:
        """All requests as one, or `None` without any."""
        return functools.reduce(StopRequest.joined_by, self._requests) if self._requests else None

    def check(self) -> None:
        """Raise `StopRequested` if a stop was asked for."""
        if self._requests:
            raise StopRequested

    def on_signal(self, signum: int) -> None:
        """This process got a signal that stops it."""
        self.put(None, signum, from_signal=True)
        request = self.request
        error = request.as_error() if request else None
        if self.in_foreign_code and not self.settling and error is not None:
            raise error

    def pump(self, _now: float) -> None:
        """For the agent's waiter: acts on requests that are new."""
        request = self.request
        if request is None or request == self._seen:
            return
        if not self.settling:
            raise StopRequested
        self._seen = request
        self._hasten(request)

    def grace_deadline(self) -> float:
        """Until when workers that are stopped now may take."""
        usual = self._clock() + self._default_grace_s
        request = self.request
        return usual if request is None else min(usual, request.deadline)

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Meanwhile workers are being stopped: a stop shortens that and interrupts nothing."""
        before, self.settling = self.settling, True
        try:
            yield
        finally:
            self.settling = before

    @contextlib.contextmanager
    def foreign_code(self) -> Iterator[None]:
        """Meanwhile code runs that knows no `Waiter`."""
        self.in_foreign_code = True
        try:
            yield
        finally:
            self.in_foreign_code = False
