"""`agentctl completion SHELL`: what the shell must read to complete commands and flags."""

from __future__ import annotations

import click

from agentctl.options import CONTEXT


@click.command(context_settings=CONTEXT)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of SHELL.

    In bash: `eval "$(agentctl completion bash)"`, best put into ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    from agentctl.cli import agentctl

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(agentctl, {}, "agentctl", "_AGENTCTL_COMPLETE").source())
    return 0
