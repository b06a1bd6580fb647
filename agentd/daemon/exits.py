"""Every way `agentd` ends, by its exit code. docs/configuration.md shows this table."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of `agentd` and its subcommands."""

    OK = 0
    """Shut down: every worker was stopped in its own time."""
    INTERNAL = 1
    """A fault of agentd itself; its log tells it."""
    USAGE = 2
    """A flag, a variable or the configuration file is wrong."""
    ALREADY_RUNNING = 3
    """Another process has the state directory, the socket or the port; it is named."""
    ADDRESS_UNUSABLE = 4
    """An address to listen on is refused or cannot be bound."""
    STATE_DIR_UNUSABLE = 5
    """The state directory cannot be made or written."""
    FORCED = 6
    """A second signal cut the shutdown short: workers were killed without waiting for their grace."""
    LEFTOVERS = 7
    """`agentd reap` could not end everything."""


class StartFailed(Exception):
    """agentd cannot start; says why in one sentence and which code it exits with."""

    code = ExitCode.INTERNAL


class AlreadyRunning(StartFailed):
    """Another process has what this one needs."""

    code = ExitCode.ALREADY_RUNNING

    def __init__(self, what: str, pid: int | None) -> None:
        holder = f"pid {pid}" if pid else "a process this user may not see"
        super().__init__(
            f"{what} is in use by {holder}. Stop it first, or start this agentd with another "
            "--state-dir and --listen."
        )
        self.what = what
        self.pid = pid


class ListenFailed(StartFailed):
    """An address cannot be served on."""

    code = ExitCode.ADDRESS_UNUSABLE

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(f"cannot listen on {address}: {problem}")


class StateDirUnusable(StartFailed):
    """The state directory cannot be used."""

    code = ExitCode.STATE_DIR_UNUSABLE

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"state directory {path}: {problem}. Choose another with --state-dir.")
