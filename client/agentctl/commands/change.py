"""`agentctl stop`, `signal`, `join` and `leave`: what changes a live run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentctl import caller, flags
from agentctl.hosts import resolve_nodes, split_nodes
from agentctl.options import CONTEXT, Parsed, deadline_option, node_options, output_option
from agentd.api.signals import signal_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.message import Message

    from agentd.api.errors import AgentError

_SECONDS = Parsed(flags.parse_seconds, "SECONDS")
_SIGNAL = Parsed(flags.parse_signal, "SIGNAL")
_NUMBERS = Parsed(flags.parse_numbers, "LIST")

_grace = click.option(
    "--stop-grace", "--grace", "grace", type=_SECONDS, metavar="SECONDS",
    help="Time from SIGTERM to SIGKILL. Default: the run's own.",
)  # fmt: skip
_via = click.option(
    "--via",
    multiple=True,
    metavar="A,B,...",
    help="Nodes that know the run. Default: AGENTD_NODES, else this machine's.",
)


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@_grace
@click.option("--reason", default="", metavar="TEXT", help="For people; shown in the status.")
@click.option("--wait", "waits", is_flag=True, help="Return when every process of the run is gone.")
@node_options
@deadline_option
@output_option
def stop(run_id: str, grace: float | None, reason: str, waits: bool, **values: Any) -> int:
    """End RUN on all its nodes: SIGTERM, the grace, SIGKILL. A second stop can shorten the grace."""
    from agentctl.commands.asking import open_fleet
    from agentctl.show.talk import say
    from agentd.api import convert
    from agentd.api.types import TERMINAL

    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        handle = fleet.find(run_id)
        report = handle.stop(grace=grace, reason=reason or f"agentctl stop of {caller.name()}")
        if waits:
            report = handle.wait()
    state = report.status.phase
    say(f"run {run_id} {f'has ended: {state}' if state in TERMINAL else 'is being stopped'}")
    _write([convert.run_status_to_message(report.status)], values["output"])
    return _code(report.problems)


@click.command("signal", context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@click.argument("signum", metavar="SIGNAL", type=_SIGNAL)
@click.option("--ranks", type=_NUMBERS, metavar="0,4-7", help="Global ranks. Default: all.")
@node_options
@deadline_option
@output_option
def signal(run_id: str, signum: int, ranks: tuple[int, ...] | None, **values: Any) -> int:
    """Send SIGNAL, by name or number, to the worker processes of RUN."""
    from agentctl.commands.asking import open_fleet
    from agentctl.show.talk import say
    from agentctl.show.words import ranks as ranks_text
    from agentd.v1 import agent_service_pb2 as service

    with open_fleet(resolve_nodes(values["nodes"], values["hostfile"]), values["deadline"]) as fleet:
        result = fleet.find(run_id).signal(signum, ranks or ())
    got = sorted(rank for answer in result.answers.values() for rank in answer)
    say(f"{signal_name(signum)} sent to rank {ranks_text(got)}")
    _write([service.SignalResponse(ranks=got)], values["output"])
    not_there = sorted(set(ranks or ()) - set(got))
    if not_there:
        say(f"rank {ranks_text(not_there)} is not running on the nodes that answered")
    return _code(result.problems, partial=bool(not_there))


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@click.option("--nodes", multiple=True, required=True, metavar="C,D,...", help="Nodes to add.")
@_via
@click.option("--env-pass", multiple=True, metavar="PATTERN,...", help="As for `run`.")
@deadline_option
@output_option
def join(
    run_id: str, nodes: tuple[str, ...], via: tuple[str, ...], env_pass: tuple[str, ...], **values: Any
) -> int:
    """Add nodes to the live RUN. Beyond its most they are spares and step in when another goes."""
    from agentctl.commands.asking import open_fleet
    from agentctl.show.talk import say
    from agentd.api import convert
    from agentd_client.environment import DEFAULT_PATTERNS, choose_environment

    patterns = tuple(p for item in env_pass for p in item.split(",") if p) or DEFAULT_PATTERNS
    added = _named(nodes)
    with open_fleet(resolve_nodes(via, None), values["deadline"]) as fleet:
        environment = choose_environment(caller.ENVIRON, patterns)
        result = fleet.find(run_id).join(added, environment=environment)
    for name, start in result.answers.items():
        say(f"node {name} {'joins' if start.created else 'takes part already'}")
    _write(
        (convert.run_status_to_message(start.status) for start in result.answers.values()), values["output"]
    )
    return _code(result.problems)


@click.command(context_settings=CONTEXT)
@click.argument("run_id", metavar="RUN")
@click.option("--nodes", multiple=True, required=True, metavar="B,...", help="Nodes to take out.")
@_grace
@click.option("--reason", default="", metavar="TEXT", help="For people; shown in the status.")
@deadline_option
@output_option
def leave(run_id: str, nodes: tuple[str, ...], grace: float | None, reason: str, **values: Any) -> int:
    """Take nodes out of the live RUN; the others go on with what is left."""
    from agentctl.show.talk import say
    from agentd.api import convert
    from agentd.api.types import TERMINAL, Phase
    from agentd_client import Fleet
    from agentd_client.nodes import nodes_of

    targets = _named(nodes)
    with Fleet(targets, timeout_s=values["deadline"]) as fleet:
        names = [node.name for node in nodes_of(targets)]
        result = fleet.find(run_id).leave(
            names, grace=grace, reason=reason or f"agentctl leave of {caller.name()}"
        )
    for name, status in result.answers.items():
        # A node that is not the hub knows of success from the hub alone; any other end may be its own.
        whole = status.from_hub or status.phase is Phase.SUCCEEDED
        say(
            f"node {name}: {'' if whole else 'its part of '}run {run_id} has ended: {status.phase}"
            if status.phase in TERMINAL
            else f"node {name} leaves run {run_id}"
        )
    _write((convert.run_status_to_message(status) for status in result.answers.values()), values["output"])
    return _code(result.problems)


def _named(nodes: tuple[str, ...]) -> tuple[str, ...]:
    from agentd.api.errors import InvalidSpec
    from agentd_client.nodes import nodes_of

    targets = split_nodes(nodes)
    if not targets:
        raise click.UsageError("--nodes names no node")
    try:
        nodes_of(targets)
    except InvalidSpec as error:
        raise click.UsageError(f"--nodes: {error.facts['problem']}") from None
    return targets


def _write(messages: Iterable[Message], output: str) -> None:
    """For programs; people have been told."""
    from agentctl.show.messages import write_json, write_json_lines

    if output == "jsonl":
        write_json_lines(messages)
    elif output == "json":
        for message in messages:
            write_json(message)


def _code(problems: Mapping[str, AgentError], *, partial: bool = False) -> int:
    from agentctl.exits import ExitCode
    from agentctl.show.talk import say_problems

    say_problems(problems)
    return ExitCode.PARTIAL if problems or partial else ExitCode.OK
