"""`agentctl status` and `ps`: how runs stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentctl.hosts import resolve_nodes
from agentctl.options import CONTEXT, deadline_option, node_options, output_option

DEFAULT_LIMIT = 100
"""Ended runs that are shown if nobody says how many."""

if TYPE_CHECKING:
    from agentd.api.types import RunStatus
    from agentd_client import Fleet, PerNode, RunHandle


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("-w", "--watch", is_flag=True, help="Show each change, to the end of RUN.")
@click.option("-a", "--all", "include_ended", is_flag=True, help="Without RUN: ended runs too.")
@node_options
@deadline_option
@output_option
def status(run_id: str | None, watch: bool, include_ended: bool, **values: Any) -> int:
    """Show RUN with all its nodes and workers, or every live run."""
    from agentctl.commands.asking import open_fleet

    if watch and run_id is None:
        raise click.UsageError("--watch needs a RUN")
    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        if run_id is None:
            return _list(fleet, DEFAULT_LIMIT if include_ended else 0, values["output"])
        handle = fleet.find(run_id)
        return _watch(handle, values["output"]) if watch else _show(handle, values["output"])


@click.command(context_settings=CONTEXT)
@click.option("-a", "--all", "include_ended", is_flag=True, help="Ended runs too, from the nodes' journals.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=DEFAULT_LIMIT,
    show_default=True,
    metavar="N",
    help="With --all: so many ended runs, those that ended last.",
)
@node_options
@deadline_option
@output_option
def ps(include_ended: bool, limit: int, **values: Any) -> int:
    """List the runs of the nodes, the newest first."""
    from agentctl.commands.asking import open_fleet

    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        return _list(fleet, limit if include_ended else 0, values["output"])


def _show(handle: RunHandle, output: str) -> int:
    from agentctl.exits import ExitCode
    from agentctl.show.talk import say_problems

    report = handle.status()
    _write(report.status, output)
    say_problems(report.problems)
    return ExitCode.OK


def _watch(handle: RunHandle, output: str) -> int:
    import sys

    from agentctl.exits import ExitCode

    if output == "table" and sys.stdout.isatty():
        _watch_live(handle)
    else:
        for snapshot in handle.watch():
            _write(snapshot, "jsonl" if output == "json" else output)
    return ExitCode.OK


def _watch_live(handle: RunHandle) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from agentctl.show.tables import make_console, rich_table, run_summary, run_table

    with Live(console=make_console(), refresh_per_second=8) as live:
        for snapshot in handle.watch():
            summary = Text("\n".join(run_summary(snapshot)) + "\n")
            live.update(Group(summary, rich_table(run_table(snapshot))))


def _write(run: RunStatus, output: str) -> None:
    from agentd.api import convert

    if output == "table":
        from agentctl.show.tables import run_summary, run_table, write_table

        click.echo("\n".join(run_summary(run)) + "\n")
        write_table(run_table(run))
        return
    from agentctl.show.messages import write_json, write_json_lines

    message = convert.run_status_to_message(run)
    if output == "json":
        write_json(message)
    else:
        write_json_lines([message])


def _list(fleet: Fleet, ended: int, output: str) -> int:
    from agentctl.exits import ExitCode, of_error
    from agentctl.show.messages import write_json, write_json_lines
    from agentctl.show.tables import runs_table, write_table
    from agentctl.show.talk import say, say_problems
    from agentd.api import convert
    from agentd.v1 import agent_service_pb2 as service

    result = _with_ended(fleet, ended) if ended else fleet.list_runs()
    if not result.answers:
        say_problems(result.problems)
        return of_error(next(iter(result.problems.values())))
    runs, more = _newest(_merged(result), ended)
    messages = [convert.run_status_to_message(run) for run in runs]
    if output == "json":
        write_json(service.StatusResponse(runs=messages))
    elif output == "jsonl":
        write_json_lines(messages)
    else:
        write_table(runs_table(runs))
    if more:
        say(f"only the last {ended} ended runs are shown: --limit shows more")
    say_problems(result.problems)
    return ExitCode.OK if result.complete else ExitCode.PARTIAL


def _with_ended(fleet: Fleet, limit: int) -> PerNode[tuple[RunStatus, ...]]:
    """What nodes show now and what their journals hold. Who tells only one of both is a problem."""
    from agentd_client import PerNode

    # One more than wanted: to know whether that was all.
    ended, shown = fleet.list_ended_runs(limit=limit + 1), fleet.list_runs(include_ended=True)
    answers = {
        name: tuple(
            {(run.run_id, run.incarnation): run for run in (*runs, *shown.answers.get(name, ()))}.values()
        )
        for name, runs in {**shown.answers, **ended.answers}.items()
    }
    return PerNode(answers=answers, problems={**ended.problems, **shown.problems})


def _newest(runs: list[RunStatus], ended: int) -> tuple[list[RunStatus], bool]:
    """Live runs and so many ended ones, the newest start first; and whether there are more."""
    from agentd.api.types import TERMINAL

    over = sorted((run for run in runs if run.phase in TERMINAL), key=lambda run: -run.finished_at)
    left_out = {id(run) for run in over[ended:]} if ended else set[int]()
    return [run for run in reversed(runs) if id(run) not in left_out], bool(left_out)


def _merged(result: PerNode[tuple[RunStatus, ...]]) -> list[RunStatus]:
    """Each run once, by what all its nodes tell, oldest first."""
    from agentd_client.view import merge

    told: dict[tuple[str, int], list[RunStatus]] = {}
    for runs in result.answers.values():
        for run in runs:
            told.setdefault((run.run_id, run.incarnation), []).append(run)
    merged = [merge(None, statuses) for statuses in told.values()]
    return sorted(merged, key=lambda run: (run.started_at, run.run_id))
