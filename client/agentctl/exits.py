"""Every way `agentctl` ends, by its exit code. docs/exit-codes.md shows this table.

`run`, `attach` and `wait` end with the code of the first failed worker, 128+n where signal n ended it.
Codes of agentctl itself lie above those, where programs rarely are.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.api.errors import AgentError
    from agentd.api.types import RunStatus


class ExitCode(enum.IntEnum):
    """Exit codes of `agentctl`, apart from those of workers."""

    OK = 0
    """It is done; a run that was waited for has succeeded."""
    USAGE = 2
    """A flag, an argument or a file given on the command line is wrong. Nothing was asked of any node."""
    INTERRUPTED = 130
    """Ctrl-C: a run that was attached by `run` was stopped."""
    RUN_FAILED = 220
    """The run failed though no worker did: its nodes did not come together, or a group could not go on."""
    UNREACHABLE = 221
    """No agentd answers at the nodes named, or at none that knows the run."""
    NOT_FOUND = 222
    """No such run, rank or log on the nodes that answered."""
    TIMEOUT = 223
    """A node did not answer in time, or `wait --timeout` is over while the run goes on."""
    REFUSED = 224
    """A node refuses: another run has the id or the device, the program is not there, the node is drained."""
    STOPPED = 225
    """The run was stopped by somebody."""
    LOST = 226
    """Nobody can say how the run ended."""
    PARTIAL = 227
    """Some nodes did it, others did not; both are named."""
    INTERNAL = 228
    """A fault of agentctl or agentd; the message tells where its story is."""
    UNHEALTHY = 229
    """`nodes --check`: a node is drained, ending or degraded."""


class HealthExit(enum.IntEnum):
    """Exit codes of `agentctl health`, those of grpc_health_probe."""

    SERVING = 0
    """The service answers SERVING."""
    USAGE = 1
    """A flag is wrong."""
    NO_CONNECTION = 2
    """No connection, or not in time."""
    RPC_FAILED = 3
    """Connected, but the check failed, for example for an unknown service, or was not answered in time."""
    NOT_SERVING = 4
    """The service answers something else than SERVING."""


_LARGEST_CODE = 255


class CommandFailed(Exception):
    """A command cannot go on, for a reason that is no answer of a node; says the next step."""

    def __init__(self, sentence: str, code: ExitCode) -> None:
        super().__init__(sentence)
        self.code = code


def of_run(status: RunStatus) -> int:
    """The exit code of a run that has ended."""
    from agentd.api.types import Phase

    if status.phase is Phase.SUCCEEDED:
        return ExitCode.OK
    if status.phase is Phase.STOPPED:
        return ExitCode.STOPPED
    if status.phase is Phase.LOST:
        return ExitCode.LOST
    failure = status.first_failure
    if failure is not None and failure.signal:
        return 128 + failure.signal
    if failure is not None and failure.exit_code:
        return min(abs(failure.exit_code), _LARGEST_CODE)
    return ExitCode.RUN_FAILED


def of_error(error: AgentError) -> ExitCode:
    """The exit code of a request that failed."""
    from agentd.api.errors import Code, InternalError, NotRunning, Unreachable

    if isinstance(error, Unreachable):
        return ExitCode.UNREACHABLE
    if isinstance(error, InternalError):
        return ExitCode.INTERNAL
    if isinstance(error, NotRunning) and error.facts.get("ranks"):
        return ExitCode.NOT_FOUND
    cause = getattr(error, "cause", None)
    if cause is not None:
        return of_error(cause)
    return {
        Code.NOT_FOUND: ExitCode.NOT_FOUND,
        Code.DEADLINE_EXCEEDED: ExitCode.TIMEOUT,
        Code.UNAVAILABLE: ExitCode.REFUSED,
        Code.INTERNAL: ExitCode.INTERNAL,
    }.get(error.code, ExitCode.REFUSED)
