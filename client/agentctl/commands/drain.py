"""`agentctl drain` and `undrain`: nodes that their operator wants empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agentctl import caller, flags
from agentctl.hosts import split_nodes
from agentctl.options import CONTEXT, Parsed, deadline_option, output_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agentd.api.errors import AgentError
    from agentd.api.types import DrainReport
    from agentd_client import DrainEvent, DrainProgress, Fleet

_SECONDS = Parsed(flags.parse_seconds, "TIME")


@click.command(context_settings=CONTEXT)
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@click.option("--move", is_flag=True, help="Leave all runs at once. Default: wait until they have ended.")
@click.option(
    "--deadline",
    type=_SECONDS,
    metavar="TIME",
    help="Wait for so long, such as 10m; then leave the runs that are still there, as --move does.",
)
@click.option(
    "--stop-grace", "--grace", "grace", type=_SECONDS, metavar="SECONDS",
    help="Time from SIGTERM to SIGKILL for workers of runs that are left. Default: each run's own.",
)  # fmt: skip
@click.option("--reason", default="", metavar="TEXT", help="For people; told to whom a run is refused.")
@click.option("-d", "--detach", is_flag=True, help="Return at once. Default: stay until the nodes are empty.")
@output_option
def drain(
    nodes: tuple[str, ...],
    move: bool,
    deadline: float | None,
    grace: float | None,
    reason: str,
    detach: bool,
    output: str,
) -> int:
    """Have each NODE take no new run, until `undrain` and whatever becomes of its agentd.

    Then stay until nothing runs there any more; Ctrl-C leaves, and the nodes stay drained. Again, it replaces
    what was asked before.
    """
    from agentd.api.types import DrainMode
    from agentd_client import Fleet

    targets = _named(nodes)
    if move and deadline is not None:
        raise click.UsageError("--deadline is how long to wait: it excludes --move, which leaves at once")
    if deadline == 0:
        raise click.UsageError("--deadline: no time at all is --move")
    with Fleet(targets) as fleet:
        result = fleet.drain(
            mode=DrainMode.MOVE if move else DrainMode.WAIT,
            deadline=deadline,
            grace=grace,
            reason=reason or f"agentctl drain of {caller.name()}",
        )
    for name, report in result.answers.items():
        _tell(name, report)
    code = _code(result.answers, result.problems)
    if result.answers:
        with Fleet(list(result.answers)) as fleet:
            if not detach:
                code = _stay(fleet) or code
            _write(fleet, output)
    return code


@click.command(context_settings=CONTEXT)
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@deadline_option
@output_option
def undrain(nodes: tuple[str, ...], deadline: float, output: str) -> int:
    """Have each NODE take runs again. Runs that it has left do not come back: `agentctl join` adds it."""
    from agentctl.show.talk import say
    from agentd_client import Fleet

    with Fleet(_named(nodes), timeout_s=deadline) as fleet:
        result = fleet.undrain()
        for name, before in result.answers.items():
            say(f"node {name} {'was not drained' if before is None else 'takes runs again'}")
        if result.answers:
            _write(fleet, output)
    return _code(result.answers, result.problems)


def _named(nodes: tuple[str, ...]) -> tuple[str, ...]:
    from agentd.api.errors import InvalidSpec
    from agentd_client.nodes import nodes_of

    targets = split_nodes(nodes)
    if not targets:
        raise click.UsageError("name the nodes")
    try:
        nodes_of(targets)
    except InvalidSpec as error:
        raise click.UsageError(error.facts["problem"]) from None
    return targets


def _tell(name: str, report: DrainReport) -> None:
    from agentctl.show.drains import hub_line, promise
    from agentctl.show.talk import say

    say(f"node {name} takes no new run; {promise(report)}")
    if report.hub_of:
        say(f"node {name} {hub_line(report.hub_of)}")


def _stay(fleet: Fleet) -> int:
    """Until the nodes are empty. The exit code, 0 if they are."""
    from agentctl.exits import ExitCode
    from agentctl.show.talk import say

    last: dict[str, DrainProgress] = {}
    silent: dict[str, AgentError] = {}
    try:
        for event in fleet.follow_drain():
            _show(event, last, silent)
    except KeyboardInterrupt:
        say("the nodes stay drained; `agentctl drain` follows them again, `agentctl undrain` takes it back")
        return ExitCode.INTERRUPTED
    for name in silent:
        say(f"node {name} does not answer: nobody can say what is left there")
    given_back = [name for name, progress in last.items() if progress.info.drain is None]
    for name in given_back:
        say(f"node {name} was given back meanwhile: it takes runs again")
    if not silent and not given_back:
        return ExitCode.OK
    if len(silent) == len(fleet.nodes):
        return ExitCode.UNREACHABLE
    return ExitCode.PARTIAL


def _show(event: DrainEvent, last: dict[str, DrainProgress], silent: dict[str, AgentError]) -> None:
    from agentctl.show.drains import left_line
    from agentctl.show.talk import say
    from agentd_client import DrainProgress, NodeProblem

    if isinstance(event, DrainProgress):
        last[event.node] = event
        say(f"node {event.node} {left_line(event.info)}")
    elif isinstance(event, NodeProblem):
        silent[event.node] = event.error
        say(f"node {event.node}: {event.error}")
    else:
        silent.pop(event.node, None)
        say(f"node {event.node} answers again")


def _write(fleet: Fleet, output: str) -> None:
    """The nodes as they are now, for programs; people have been told."""
    from agentctl.show.messages import write_json_lines, write_json_list
    from agentd.api import convert

    if output == "table":
        return
    messages = [convert.node_info_to_message(info) for info in fleet.get_nodes().answers.values()]
    if output == "json":
        write_json_list("nodes", messages)
    else:
        write_json_lines(messages)


def _code(answers: Iterable[str], problems: Mapping[str, AgentError]) -> int:
    from agentctl.exits import ExitCode, of_error
    from agentctl.show.talk import say_problems

    say_problems(problems)
    if not problems:
        return ExitCode.OK
    return ExitCode.PARTIAL if list(answers) else of_error(next(iter(problems.values())))
