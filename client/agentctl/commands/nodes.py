"""`agentctl nodes`: who the nodes are and how they are."""

from __future__ import annotations

from typing import Any

import click

from agentctl.hosts import resolve_nodes
from agentctl.options import CONTEXT, deadline_option, node_options, output_option


@click.command(context_settings=CONTEXT)
@click.option("--check", is_flag=True, help="Exit with an error when a node is drained, ending or degraded.")
@node_options
@deadline_option
@output_option
def nodes(check: bool, **values: Any) -> int:
    """Show the nodes: address, version, CPUs and GPUs, load, memory, disk, runs."""
    from agentctl.commands.asking import open_fleet
    from agentctl.exits import ExitCode, of_error
    from agentctl.show.drains import drain_line, hub_line
    from agentctl.show.messages import write_json_lines, write_json_list
    from agentctl.show.tables import no_answer, nodes_table, write_table
    from agentctl.show.talk import say, say_problems
    from agentd.api import convert

    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        result = fleet.get_nodes()
    found = list(result.answers.values())
    messages = [convert.node_info_to_message(node) for node in found]
    if values["output"] == "json":
        problems = [
            {"node": name, "state": no_answer(error), "problem": str(error)}
            for name, error in result.problems.items()
        ]
        write_json_list("nodes", messages, problems=problems)
    elif values["output"] == "jsonl":
        write_json_lines(messages)
    else:
        write_table(nodes_table(found, result.problems))
    for node in found:
        if node.drain is not None:
            say(f"{node.node_id}: {drain_line(node.drain)}")
        if node.drain is not None and node.hub_of:
            say(f"{node.node_id} {hub_line(node.hub_of)}")
        for name, detail in node.condition_details.items():
            say(f"{node.node_id}: {name}: {detail}")
    say_problems(result.problems)
    if not found:
        return of_error(next(iter(result.problems.values())))
    if not result.complete:
        return ExitCode.PARTIAL
    if check and any(node.ending or node.drain or node.conditions for node in found):
        return ExitCode.UNHEALTHY
    return ExitCode.OK
