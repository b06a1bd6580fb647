"""`agentctl version`: of this program, and with `--nodes` of the agentds it speaks to."""

from __future__ import annotations

from typing import Any

import click

from agentctl.hosts import resolve_nodes
from agentctl.options import CONTEXT, deadline_option, node_options


@click.command(context_settings=CONTEXT)
@click.option(
    "-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", show_default=True
)
@node_options
@deadline_option
def version(output: str, **values: Any) -> int:
    """Print the versions of agentctl and what it stands on; with --nodes also of their agentds."""
    import json
    import platform
    from importlib import metadata

    from agentctl.exits import ExitCode
    from agentctl.show.talk import say_problems
    from agentd import __version__

    facts = {
        "agentctl": __version__,
        "python": platform.python_version(),
        "grpc": metadata.version("grpcio"),
        "protobuf": metadata.version("protobuf"),
    }
    named = resolve_nodes(values["nodes"], values["hostfile"])
    nodes: dict[str, str] = {}
    code = ExitCode.OK
    if not named.is_local:
        from agentctl.commands.asking import open_fleet

        with open_fleet(named, values["deadline"]) as fleet:
            result = fleet.get_nodes()
        nodes = {name: info.version for name, info in result.answers.items()}
        say_problems(result.problems)
        if result.problems:
            code = ExitCode.PARTIAL if nodes else ExitCode.UNREACHABLE
    if output == "table":
        for name, value in (*facts.items(), *((f"agentd at {name}", value) for name, value in nodes.items())):
            click.echo(f"{name} {value}")
    else:
        click.echo(json.dumps({**facts, "nodes": nodes}, indent=2 if output == "json" else None))
    return code
