"""`agentctl renew`: tells a run with a controller lease that somebody looks after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentctl.hosts import resolve_nodes
from agentctl.options import CONTEXT, deadline_option, node_options, output_option

if TYPE_CHECKING:
    from agentd.api.types import ControllerLease
    from agentd_client import RunHandle


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@click.option("--keep", is_flag=True, help="Stay, and renew it again and again until RUN has ended.")
@node_options
@deadline_option
@output_option
def renew(run_id: str, keep: bool, **values: Any) -> int:
    """Renew the controller lease of RUN, which would be stopped without that."""
    from agentctl.commands.asking import open_fleet
    from agentctl.exits import ExitCode

    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        handle = fleet.find(run_id)
        if keep:
            return _keep(handle)
        _tell(run_id, handle.renew_lease(), values["output"])
    return ExitCode.OK


def _keep(handle: RunHandle) -> int:
    from agentctl.exits import ExitCode, of_error
    from agentctl.show.talk import say
    from agentctl.show.words import duration
    from agentd.api.errors import RunEnded

    with handle.keep_lease() as keeper:
        if keeper.lease is not None:
            say(
                f"keeping the controller lease of run {handle.run_id}: it lives for "
                f"{duration(keeper.lease.duration)} after the last renewal"
            )
        keeper.wait()
    problem = keeper.problem
    if problem is None or isinstance(problem, RunEnded):
        say(f"run {handle.run_id} has ended")
        return ExitCode.OK
    say(str(problem))
    return of_error(problem)


def _tell(run_id: str, lease: ControllerLease, output: str) -> None:
    from agentctl.show.messages import write_json, write_json_lines
    from agentctl.show.talk import say
    from agentctl.show.words import clock_time
    from agentd.api import convert

    say(f"run {run_id} lives until {clock_time(lease.until)} without another renewal")
    message = convert.controller_lease_to_message(lease)
    if output == "json":
        write_json(message)
    elif output == "jsonl":
        write_json_lines([message])
