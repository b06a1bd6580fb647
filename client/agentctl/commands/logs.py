"""`agentctl logs`: worker output of all nodes of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentctl import flags
from agentctl.hosts import resolve_nodes
from agentctl.options import CONTEXT, Parsed, deadline_option, node_options

if TYPE_CHECKING:
    from agentd.api.types import LogsRequest
    from agentd_client import RunHandle

_NUMBERS = Parsed(flags.parse_numbers, "LIST")
_STREAMS = {"stdout": ("stdout",), "stderr": ("stderr",), "both": ()}


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@click.option(
    "-f", "--follow", is_flag=True, help="Stay for what comes, over restarts, to the end of the run."
)
@click.option("--ranks", type=_NUMBERS, metavar="0,4-7", help="Global ranks. Default: all.")
@click.option("--role", default="", metavar="NAME", help="Of this role only.")
@click.option(
    "--stream", type=click.Choice(list(_STREAMS)), default="both", show_default=True, help="Which output."
)
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="Only the last lines of each file.")
@click.option(
    "--round", "round_", type=click.IntRange(1), metavar="N", help="Of this round. Default: the newest."
)
@click.option("--all-rounds", is_flag=True, help="Of every round, from the first.")
@click.option("--no-prefix", is_flag=True, help="Lines as workers wrote them, without [role rank].")
@click.option(
    "-o", "--output", type=click.Choice(["text", "jsonl"]), default="text", show_default=True,
    help="jsonl: the pieces as messages of the API.",
)  # fmt: skip
@node_options
@deadline_option
def logs(run_id: str, **values: Any) -> int:
    """Show what the workers of RUN wrote: their stdout on stdout, their stderr on stderr."""
    from agentctl.commands.asking import open_fleet
    from agentd.api.types import LogsRequest, LogStream

    if values["round_"] and values["all_rounds"]:
        raise click.UsageError("--round and --all-rounds exclude each other")
    request = LogsRequest(
        run_id=run_id,
        ranks=values["ranks"] or (),
        role=values["role"],
        streams=tuple(LogStream(name) for name in _STREAMS[values["stream"]]),
        tail_lines=values["tail"],
        follow=values["follow"],
        round=values["round_"] or 0,
        all_rounds=values["all_rounds"],
    )
    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        handle = fleet.find(run_id)
        return _show(handle, request, output=values["output"], prefixed=not values["no_prefix"])


def _show(handle: RunHandle, request: LogsRequest, *, output: str, prefixed: bool) -> int:
    from contextlib import closing

    from agentctl.exits import ExitCode
    from agentctl.show.display import JsonLinesDisplay, PeopleDisplay
    from agentctl.show.lines import LineAssembler
    from agentd_client import LogCut, LogReceived, NodeProblem

    people = PeopleDisplay(LineAssembler(prefixed=prefixed), quiet=True)
    display = JsonLinesDisplay() if output == "jsonl" else people
    code = ExitCode.OK
    with closing(handle.log_events(request)) as events:
        for event in events:
            if isinstance(event, LogReceived | LogCut | NodeProblem):
                display.show(event)
            if isinstance(event, NodeProblem) and event.final:
                code = ExitCode.PARTIAL
    people.flush()
    return code
