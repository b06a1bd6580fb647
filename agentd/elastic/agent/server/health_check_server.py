"""Health checks from outside: whether an agent makes progress, told on a port.

torch's open build has the interface only and opens no port; these servers do. What is alive is decided here,
by `LivenessJudge`; how it is told is a server's matter: HTTP in `health.http`, others by entry point.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agentd.elastic.multiprocessing.api import SignalException
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentd.procs.waiter import Waiter

__all__ = [
    "ENTRY_POINTS",
    "PORT_VARIABLE",
    "PROTOCOL_VARIABLE",
    "HealthCheckError",
    "HealthCheckPortError",
    "HealthCheckProtocolError",
    "HealthCheckServer",
    "Liveness",
    "LivenessJudge",
    "create_healthcheck_server",
    "port_from_env",
]

log = logging.getLogger(__name__)

PORT_VARIABLE = "TORCHELASTIC_HEALTH_CHECK_PORT"
"""Names the port, as in torch. Unset or empty: no health checks."""
PROTOCOL_VARIABLE = "AGENTD_HEALTH_CHECK_PROTOCOL"
"""Chooses the protocol where the caller does not: "http" (the default), "grpc", or one that is installed."""
ENTRY_POINTS = "agentd.health_check_servers"
"""The entry point group of further protocols: name -> `(alive_callback, port, timeout, *, waiter)`."""

BUILT_IN = "http"


class HealthCheckError(Exception):
    """There is no health check server; whatever was to be watched can go on without one."""


class HealthCheckPortError(HealthCheckError):
    """The port cannot be used. `port` is it as it was given, `cause` says why."""

    def __init__(self, port: object, cause: str) -> None:
        self.port = port
        self.cause = cause
        super().__init__(
            f"no health checks on port {port!r}: {cause}. Choose another port with {PORT_VARIABLE}, "
            "or unset it to run without health checks"
        )


class HealthCheckProtocolError(HealthCheckError):
    """Nothing here speaks `protocol`: `cause` says why, if it is known. One of `known` can be chosen."""

    def __init__(self, protocol: str, known: tuple[str, ...], cause: str = "") -> None:
        self.protocol = protocol
        self.known = known
        self.cause = cause
        what = f"cannot be loaded: {cause}" if cause else "is not installed"
        super().__init__(
            f"the health check protocol {protocol!r} {what}. There is {', '.join(known)}: choose with "
            f"{PROTOCOL_VARIABLE}"
        )


@dataclass(frozen=True, slots=True)
class Liveness:
    """One look at the progress."""

    alive: bool
    """Whether the last progress is young enough."""
    age: float | None
    """Seconds since the last progress; `None` if nobody could tell."""
    text: str
    """The same for people, one line without its end."""


class LivenessJudge:
    """Alive means: the last progress is no older than `timeout` seconds.

    `alive_callback` tells the last progress in seconds since the epoch, as torch's does. That clock may be
    set while we watch, so the age of a value that was seen before grows with the monotonic clock alone, and
    a value from the future counts as fresh. A callback that raises, or answers no number, is not alive.
    """

    def __init__(self, alive_callback: Callable[[], float], timeout: float) -> None:
        self._callback = alive_callback
        self._timeout = timeout
        self._seen: tuple[float, float] | None = None
        """The last value, and the monotonic time of the progress it stands for."""
        self._failure = ""

    def look(self, now: float, monotonic: float) -> Liveness:
        """How it is at `now`, in seconds since the epoch, which is `monotonic` on the monotonic clock."""
        try:
            value = float(self._callback())
        except SignalException:
            raise  # a stop that arrived just now is not the callback's failure
        except Exception as error:  # noqa: BLE001  whatever a user's callback raises
            return self._unknown(f"the callback raised {type(error).__name__}", repr(error))
        if not math.isfinite(value):
            return self._unknown(f"the callback answered {value}", "")
        self._failure = ""
        age = monotonic - self._progressed(value, now, monotonic)
        alive = age <= self._timeout
        return Liveness(
            alive,
            age,
            f"{'alive' if alive else 'not alive'}: the last progress is {age:.1f} s old, "
            f"the limit {self._timeout:g} s",
        )

    def _progressed(self, value: float, now: float, monotonic: float) -> float:
        """When it progressed last, on the monotonic clock."""
        seen = self._seen
        if seen is not None and seen[0] == value:
            return seen[1]
        progressed = monotonic - max(0.0, now - value)
        if seen is not None and value > seen[0]:
            # Later progress came after the one we knew, whatever was done to the clock.
            progressed = max(progressed, seen[1])
        self._seen = (value, progressed)
        return progressed

    def _unknown(self, reason: str, detail: str) -> Liveness:
        if reason != self._failure:
            self._failure = reason
            log.warning("health check: %s", f"{reason}: {detail}" if detail else reason)
        # The detail is for the log: whoever can reach the port need not read a user's exceptions.
        return Liveness(False, None, f"not alive: {reason}")


class HealthCheckServer:
    """The interface, as torch's: a class to replace. By itself it opens no port and says so.

    A subclass overrides `start` and `stop`; `liveness` tells it what to answer.
    """

    def __init__(self, alive_callback: Callable[[], float], port: int, timeout: float) -> None:
        """`alive_callback` tells the last progress in seconds since the epoch, `timeout` how old it may be.

        Port 0 is any free one.
        """
        self._alive_callback = alive_callback
        self._port = port
        self._timeout = timeout
        self._judge = LivenessJudge(alive_callback, timeout)

    def start(self) -> None:
        """Serve from now on. Raises `HealthCheckPortError` if the port cannot be had."""
        log.warning("no health check server was started: %s opens no port", type(self).__name__)

    def stop(self) -> None:
        """Serve no longer and free the port. May be called again, and without a start."""

    def liveness(self) -> Liveness:
        """How it is now. For one thread at a time."""
        return self._judge.look(time.time(), time.monotonic())

    @property
    def alive_callback(self) -> Callable[[], float]:
        """What tells the last progress, in seconds since the epoch."""
        return self._alive_callback

    @property
    def port(self) -> int:
        """The port, as it was asked for until `start` has bound it."""
        return self._port


def create_healthcheck_server(
    alive_callback: Callable[[], float],
    port: int,
    timeout: float,
    *,
    protocol: str | None = None,
    waiter: Waiter | None = None,
) -> HealthCheckServer:
    """A server that is yet to be started; the first three arguments are torch's.

    `protocol` is "http", "grpc" or another that is installed, by default what AGENTD_HEALTH_CHECK_PROTOCOL
    says, else "http". Given the `waiter` of a thread, the server lives in that thread's waits: it answers
    only while the thread goes round. Raises `HealthCheckProtocolError` for a protocol nothing here speaks.
    """
    name = (protocol or os.environ.get(PROTOCOL_VARIABLE) or BUILT_IN).strip().lower()
    server: HealthCheckServer = _maker(name)(alive_callback, port, timeout, waiter=waiter)
    return server


def port_from_env(env: Mapping[str, str]) -> int | None:
    """The port that TORCHELASTIC_HEALTH_CHECK_PORT names, or `None` if it is unset or empty.

    Raises `HealthCheckPortError` for what is no port number.
    """
    text = env.get(PORT_VARIABLE, "").strip()
    return checked_port(text) if text else None


def checked_port(port: object) -> int:
    """The port as a number, or `HealthCheckPortError`."""
    try:
        number = int(port)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise HealthCheckPortError(port, "it is not a number") from None
    if not 0 <= number <= 65535:
        raise HealthCheckPortError(port, "port numbers go from 0 (any free one) to 65535")
    return int(number)


def _maker(name: str) -> Callable[..., Any]:
    if name == BUILT_IN:
        from agentd.elastic.agent.server.health.http import HttpHealthCheckServer

        return HttpHealthCheckServer
    from importlib.metadata import entry_points

    found = entry_points(group=ENTRY_POINTS)
    known = tuple(sorted({BUILT_IN, *(entry.name for entry in found)}))
    for entry in found:
        if entry.name == name:
            try:
                maker: Callable[..., Any] = entry.load()
            except SignalException:
                raise
            except Exception as error:  # an import may raise anything
                raise HealthCheckProtocolError(name, known, str(error) or repr(error)) from error
            return maker
    raise HealthCheckProtocolError(name, known)
