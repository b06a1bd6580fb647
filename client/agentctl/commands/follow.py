"""`agentctl attach` and `wait`: back to a run, by its id."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from agentctl import flags
from agentctl.hosts import resolve_nodes
from agentctl.options import CONTEXT, Parsed, deadline_option, node_options, output_option

if TYPE_CHECKING:
    from agentctl.hosts import Nodes

_SECONDS = Parsed(flags.parse_seconds, "SECONDS")


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@click.option(
    "--tail", type=click.IntRange(0), metavar="LINES", help="Begin with the last lines of each file."
)
@node_options
@deadline_option
@output_option
def attach(run_id: str, tail: int | None, **values: Any) -> int:
    """Stay with RUN as `run` does: output, news, the end report, its exit code.

    Ctrl-C leaves the run running; `agentctl stop` ends it.
    """
    from agentctl.commands.asking import asking

    nodes = resolve_nodes(values["nodes"], values["hostfile"])
    with asking(nodes):
        return asyncio.run(_attach(run_id, tail, nodes, values["deadline"], values["output"]))


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@click.option("--timeout", type=_SECONDS, metavar="SECONDS", help="Give up then; the run goes on.")
@node_options
@deadline_option
@output_option
def wait(run_id: str, timeout: float | None, **values: Any) -> int:
    """Wait for the end of RUN. The exit code is that of the first worker that failed, 0 if none did."""
    from agentctl.commands.asking import asking

    nodes = resolve_nodes(values["nodes"], values["hostfile"])
    with asking(nodes):
        return asyncio.run(_wait(run_id, timeout, nodes, values["deadline"], values["output"]))


async def _attach(run_id: str, tail: int | None, nodes: Nodes, deadline_s: float, output: str) -> int:
    from agentctl.attached import Attached, OnInterrupt
    from agentctl.show.display import make_display
    from agentd.api.types import LogsRequest
    from agentd_client.aio import AsyncFleet

    async with AsyncFleet(nodes.for_client(), timeout_s=deadline_s) as fleet:
        attached = Attached(
            make_display(output),
            on_interrupt=OnInterrupt.LEAVE,
            logs=LogsRequest(run_id=run_id, follow=True, tail_lines=tail, all_rounds=tail is None),
        )
        return await attached.stay(fleet.find(run_id))


async def _wait(run_id: str, timeout_s: float | None, nodes: Nodes, deadline_s: float, output: str) -> int:
    from agentctl import exits
    from agentctl.show.display import make_display
    from agentd_client.aio import AsyncFleet

    async with AsyncFleet(nodes.for_client(), timeout_s=deadline_s) as fleet:
        handle = await fleet.find(run_id)
        report = await handle.wait(timeout_s)
    make_display(output, quiet=True).end(report)
    return exits.of_run(report.status)
