"""`agentctl events`: what happened, from the journals of the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentctl.hosts import resolve_nodes
from agentctl.options import CONTEXT, deadline_option, node_options, output_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentd.api.history import Event
    from agentd_client import Fleet


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Stay for what comes, to the end of RUN.")
@click.option("--node", "only", multiple=True, metavar="ID", help="Only of the node of this id. Repeatable.")
@click.option("--role", default="", metavar="NAME", help="Of worker groups, only those of this role.")
@click.option(
    "--incarnation",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Of this use of the id. Default: the newest.",
)
@click.option("--tail", type=click.IntRange(1), metavar="N", help="Only the last N events of each node.")
@node_options
@deadline_option
@output_option
def events(run_id: str | None, **values: Any) -> int:
    """Tell what happened to RUN, by time, or, without RUN, all that happened on the nodes."""
    from agentctl.commands.asking import open_fleet

    if values["incarnation"] and run_id is None:
        raise click.UsageError("--incarnation needs a RUN")
    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        return _tell(fleet, run_id or "", values)


def _tell(fleet: Fleet, run_id: str, values: dict[str, Any]) -> int:
    from agentctl.exits import ExitCode

    problems: list[str] = []
    wanted = _wanted(fleet, run_id, values, problems)
    if values["output"] == "json" and not values["follow"]:
        _write_json(list(wanted))
    else:
        _write_each(wanted, in_json=values["output"] != "table")
    return ExitCode.PARTIAL if problems else ExitCode.OK


def _wanted(fleet: Fleet, run_id: str, values: dict[str, Any], problems: list[str]) -> Iterator[Event]:
    from contextlib import closing

    from agentctl.show.talk import say
    from agentd_client import NodeBack, NodeProblem

    items = fleet.events(
        run_id, incarnation=values["incarnation"], tail=values["tail"] or 0, follow=values["follow"]
    )
    with closing(items):
        for item in items:
            if isinstance(item, NodeProblem):
                say(f"{item.node}: {item.error}")
                if item.final:
                    problems.append(item.node)
            elif isinstance(item, NodeBack):
                say(f"{item.node}: it answers again")
            elif item.node_id in (values["only"] or (item.node_id,)) and item.role in (
                values["role"] or item.role,
                "",
            ):
                yield item


def _write_json(found: list[Event]) -> None:
    from agentctl.show.messages import write_json
    from agentd.api import historywire
    from agentd.v1 import agent_service_pb2 as service

    write_json(service.ListEventsResponse(events=map(historywire.event_to_message, found)))


def _write_each(found: Iterator[Event], *, in_json: bool) -> None:
    from agentctl.show.history import EventLines
    from agentctl.show.messages import write_json_lines
    from agentd.api import historywire

    lines = EventLines()
    for event in found:
        if in_json:
            write_json_lines([historywire.event_to_message(event)])
        else:
            click.echo(lines.of(event))
