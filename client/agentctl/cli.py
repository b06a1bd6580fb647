"""`agentctl`: an ordinary client of agentd's API. Exit codes are those of `agentctl.exits`.

Each command is a module that is imported when it is called; nothing heavy is imported before its flags are
checked.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import click

from agentctl import caller
from agentctl.exits import CommandFailed, ExitCode, HealthExit, of_error
from agentctl.options import CONTEXT
from agentctl.show.talk import say
from agentd import __version__

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run": "run",
        "attach": "follow",
        "wait": "follow",
        "logs": "logs",
        "status": "runs",
        "ps": "runs",
        "events": "events",
        "stop": "change",
        "signal": "change",
        "join": "change",
        "leave": "change",
        "renew": "renew",
        "nodes": "nodes",
        "drain": "drain",
        "undrain": "drain",
        "handover": "handover",
        "health": "health",
        "version": "version",
        "completion": "completion",
    }
)
"""Commands, in the order of the help text, and the modules that have them."""

_BROKEN_PIPE_CODE: Final = 141


class OutputGone(Exception):
    """Nobody reads our standard output any more."""


class LazyGroup(click.Group):
    """Imports a command when it is needed."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Click would turn a broken pipe into a failure of the program."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise OutputGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in reading order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"agentctl.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called. A word that is none may be a slip of the fingers."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Flags before the command are the group's own, and there are almost none."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            command = next((word for word in args if word in COMMANDS), "COMMAND")
            hint = f"Options stand behind the command: agentctl {command} {error.option_name} ..."
            raise click.UsageError(f"{error.format_message()} {hint}", ctx) from None


@click.group(cls=LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, message="agentctl %(version)s")
def agentctl() -> None:
    """Start, watch, change and stop training runs on nodes that run agentd.

    Nodes are named with --nodes, --hostfile or AGENTD_NODES; otherwise the agentd of this machine is asked.
    Data goes to standard output, talk to standard error.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, whatever happens. Without `argv` this is the console script, and does not return."""
    if argv is not None:
        return _code(list(argv))
    code = _code(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # All is said and closed; to take an interpreter with gRPC apart takes longer than many a command.
    os._exit(code)


def _code(arguments: list[str]) -> int:
    caller.quiet_grpc()
    try:
        return _run(arguments)
    except (OutputGone, BrokenPipeError):
        # Nothing more can be said there, when the interpreter ends neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE_CODE
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        return _usage_error(error, arguments)
    except Exception as error:  # noqa: BLE001 (no traceback ever reaches a user)
        return _failed(error)


def _run(arguments: list[str]) -> int:
    code = agentctl.main(args=arguments, prog_name="agentctl", standalone_mode=False)
    sys.stdout.flush()
    return code if isinstance(code, int) else ExitCode.OK


def _usage_error(error: click.ClickException, arguments: list[str]) -> int:
    error.show()
    is_health = next((word for word in arguments if not word.startswith("-")), "") == "health"
    return HealthExit.USAGE if is_health else ExitCode.USAGE


def _failed(error: Exception) -> int:
    from agentd.api.errors import AgentError

    if isinstance(error, CommandFailed):
        say(str(error))
        return error.code
    if isinstance(error, AgentError):
        say(str(error))
        return of_error(error)
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="agentctl-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as story:
        traceback.print_exception(error, file=story)
    say(f"internal error: {type(error).__name__}: {error}. Please report it with {story.name}")
    return ExitCode.INTERNAL
