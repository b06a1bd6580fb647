"""Options that commands share, and types that turn `ValueError` into a usage error naming the flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import click

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = ("table", "json", "jsonl")
DEFAULT_DEADLINE_S = 10.0


class Parsed(click.ParamType, Generic[T]):  # type: ignore[type-arg]
    """A value read by a function."""

    def __init__(self, read: Callable[[str], T], name: str) -> None:
        self.read = read
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Click's hook."""
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The shell completes paths by itself, once it is told that a path is wanted."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """As `complete_files`, for directories."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def dashed(name: str) -> str:
    """Underscores in flags are dashes, as torchrun takes them."""
    return name.replace("_", "-")


CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "token_normalize_func": dashed}
"""Settings of every command."""


def node_options(command: Command) -> Command:
    """`--nodes` and `--hostfile`."""
    command = click.option(
        "--hostfile",
        metavar="FILE",
        shell_complete=complete_files,
        help="Nodes from a file: one target a line, optional slots=N.",
    )(command)
    return click.option(
        "--nodes",
        multiple=True,
        metavar="A,B,...",
        help="Nodes as host, host:port or unix:/path. Also AGENTD_NODES. Default: this machine's agentd.",
    )(command)


def deadline_option(command: Command) -> Command:
    """`--deadline`."""
    from agentctl.flags import parse_seconds

    return click.option(
        "--deadline",
        type=Parsed(parse_seconds, "SECONDS"),
        default=DEFAULT_DEADLINE_S,
        show_default=True,
        metavar="SECONDS",
        help="How long one call may take.",
    )(command)


def output_option(command: Command) -> Command:
    """`-o`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="table for people; json and jsonl are the API's messages with their field names.",
    )(command)
