"""`agentctl run`: torchrun's flags and meaning, over one node or many."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from agentctl import caller, flags, torchrun
from agentctl.commands.runflags import run_flags
from agentctl.exits import CommandFailed, ExitCode
from agentctl.hosts import Nodes, resolve_nodes
from agentctl.options import CONTEXT, complete_files, deadline_option, node_options, output_option
from agentctl.show.talk import say
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentctl.spec import Wish
    from agentd.api.errors import Unreachable
    from agentd_client import AsyncFleet, AsyncRunHandle, PassedEnvironment


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is started and stayed with."""

    nodes: Nodes
    standalone: bool
    detach: bool
    output: str
    deadline_s: float
    request_id: str | None
    env_pass: tuple[str, ...]
    redirects: flags.StdChoice
    tee: flags.StdChoice
    local_ranks: frozenset[int] | None


@click.command(context_settings={**CONTEXT, "allow_interspersed_args": False})
@node_options
@run_flags
@deadline_option
@output_option
@click.argument("script", required=False, shell_complete=complete_files)
@click.argument("script_args", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_files)
def run(**values: Any) -> int:
    """Run SCRIPT with its arguments as a distributed program, as torchrun would, and stay with it.

    Worker output is shown as it comes; the exit code is that of the first worker that failed. Ctrl-C stops
    the run with its grace, a second one at once. With --detach, or when this terminal is lost, the run goes
    on: `agentctl attach`, `wait`, `logs`, `status` and `stop` find it by its id.
    """
    from agentctl.spec import build_wish

    options = _options(values)
    rendezvous = _rendezvous(values)
    try:
        wish = build_wish(_spec_flags(values, options), options.nodes)
        notes = torchrun.notes(rendezvous)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _check_standalone(options, wish)
    for note in notes:
        say(note)
    try:
        with _place(options, wish) as target:
            return _start(wish, options, target)
    except KeyboardInterrupt:
        # Who stays with a run hears of Ctrl-C otherwise.
        raise Interrupted(wish.spec.run_id, may_run=not options.standalone) from None


class Interrupted(CommandFailed):
    """Ctrl-C before anybody stayed with the run."""

    def __init__(self, run_id: str, *, may_run: bool) -> None:
        super().__init__(
            f"interrupted while run {run_id} was being started: `agentctl status {run_id}` tells how it is"
            if may_run
            else "interrupted before the run was started: nothing of it is left",
            ExitCode.INTERRUPTED,
        )


def _options(values: dict[str, Any]) -> RunOptions:
    if values["standalone"] and (values["nodes"] or values["hostfile"]):
        raise click.UsageError("--standalone runs on this machine alone: it excludes --nodes and --hostfile")
    if values["standalone"] and values["detach"]:
        raise click.UsageError(
            "--standalone ends with agentctl: it excludes --detach. Start `agentd` for that"
        )
    nodes = Nodes() if values["standalone"] else resolve_nodes(values["nodes"], values["hostfile"])
    ranks = values["local_ranks_filter"]
    return RunOptions(
        nodes=nodes,
        standalone=values["standalone"],
        detach=values["detach"],
        output=values["output"],
        deadline_s=values["deadline"],
        request_id=values["request_id"],
        env_pass=tuple(p for item in values["env_pass"] for p in item.split(",") if p),
        redirects=values["redirects"],
        tee=values["tee"],
        local_ranks=None if ranks is None else frozenset(ranks),
    )


def _rendezvous(values: dict[str, Any]) -> torchrun.RendezvousFlags:
    return torchrun.RendezvousFlags(
        backend=values["rdzv_backend"],
        conf=values["rdzv_conf"],
        node_rank=None if values["node_rank"] is None else str(values["node_rank"]),
        local_addr=values["local_addr"],
        start_method=values["start_method"],
        endpoint=values["rdzv_endpoint"],
        standalone=values["standalone"],
    )


def _spec_flags(values: dict[str, Any], options: RunOptions) -> Any:
    from agentctl.spec import SpecFlags
    from agentd.api.types import IsolationPolicy

    return SpecFlags(
        script=values["script"],
        script_args=values["script_args"],
        module=values["module"],
        no_python=values["no_python"],
        spec_file=values["spec_file"],
        run_id=values["run_id"],
        role=values["role"],
        nnodes=values["nnodes"],
        nproc=values["nproc_per_node"],
        max_restarts=values["max_restarts"],
        monitor_interval=values["monitor_interval"],
        stop_grace=values["stop_grace"],
        conf=values["rdzv_conf"],
        endpoint=None if options.standalone else values["rdzv_endpoint"],
        master_addr=values["master_addr"],
        master_port=values["master_port"],
        log_dir=values["log_dir"],
        python=values["python"],
        workdir=values["workdir"],
        env=_pairs("--env", values["env"]),
        devices=values["devices"] or (),
        labels=_pairs("--label", values["labels"]),
        no_rejoin=values["no_rejoin"],
        controller_lease=values["controller_lease"],
        preload=_modules(values["preload"]),
        standby=values["standby"],
        on_isolation=IsolationPolicy(values["on_isolation"]) if values["on_isolation"] else None,
    )


def _modules(items: tuple[str, ...]) -> tuple[str, ...]:
    """Names from `--preload torch,my.package`, also given several times."""
    return tuple(name.strip() for item in items for name in item.split(",") if name.strip())


def _pairs(flag: str, items: tuple[str, ...]) -> dict[str, str]:
    try:
        return flags.parse_env(items)
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from None


def _check_standalone(options: RunOptions, wish: Wish) -> None:
    if options.standalone and (len(wish.targets) > 1 or wish.spec.rendezvous.min_members > 1):
        raise click.UsageError(
            "--standalone is one node; name others with --nodes, each with an agentd of its own"
        )


@contextlib.contextmanager
def _place(options: RunOptions, wish: Wish) -> Iterator[tuple[str, ...] | None]:
    """Where the run goes: named nodes, an embedded agentd, or this machine's own."""
    from agentctl.commands.asking import asking

    if options.standalone:
        from agentctl.standalone import standalone

        with _surviving_hangup(), standalone(meanwhile=_load_client) as embedded:
            yield (embedded.target,)
    elif wish.targets:
        yield wish.targets
    else:
        with asking(options.nodes, can_be_standalone=True):
            yield None


@contextlib.contextmanager
def _surviving_hangup() -> Iterator[None]:
    """A run that would end with us does not end with our terminal, also before we stay with it."""
    former = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, former)


def _load_client() -> None:
    """What takes us as long as agentd takes to start, and most machines have two processors."""
    import agentctl.attached
    import agentctl.show.display  # noqa: F401


def _start(wish: Wish, options: RunOptions, targets: tuple[str, ...] | None) -> int:
    import asyncio

    environment = _environment(options)
    return asyncio.run(_run(wish, options, targets, environment))


def _environment(options: RunOptions) -> PassedEnvironment:
    from agentd_client.environment import DEFAULT_PATTERNS, choose_environment

    return choose_environment(caller.ENVIRON, options.env_pass or DEFAULT_PATTERNS)


async def _run(
    wish: Wish, options: RunOptions, targets: tuple[str, ...] | None, environment: PassedEnvironment
) -> int:
    from agentctl.attached import Attached, OnInterrupt
    from agentctl.show.display import make_display
    from agentctl.show.lines import Choice, LineAssembler
    from agentd.api.types import LogsRequest
    from agentd_client.aio import AsyncFleet

    async with AsyncFleet(targets, timeout_s=options.deadline_s) as fleet:
        starting = _launch(fleet, wish, options, environment)
        if options.detach:
            return _detached(await starting, wish, options.output)
        choice = Choice(redirects=options.redirects, tee=options.tee, local_ranks=options.local_ranks)
        attached = Attached(
            make_display(options.output, LineAssembler(choice)),
            on_interrupt=OnInterrupt.STOP,
            survives_hangup=options.standalone,
            keeps_lease=wish.spec.controller_lease is not None,
            logs=LogsRequest(run_id=wish.spec.run_id, follow=True, all_rounds=True),
        )
        return await attached.stay(starting)


class HubUnanswered(CommandFailed):
    """--rdzv-endpoint names no agentd; in torchrun's commands it names a store that torchrun starts."""

    def __init__(self, endpoint: str, error: Unreachable) -> None:
        super().__init__(
            f"{error} --rdzv-endpoint {endpoint} names the agentd that coordinates, not torchrun's store: "
            "leave it out, and the first node coordinates.",
            ExitCode.UNREACHABLE,
        )


async def _launch(
    fleet: AsyncFleet, wish: Wish, options: RunOptions, environment: PassedEnvironment
) -> AsyncRunHandle:
    from agentd.api.errors import Unreachable
    from agentd_client.nodes import node_of

    try:
        handle = await fleet.run(
            wish.spec, hub=wish.hub, request_id=options.request_id, environment=environment
        )
    except Unreachable as error:
        if wish.hub is None or error.facts.get("target") != node_of(wish.hub).target:
            raise
        raise HubUnanswered(wish.hub, error) from None
    say(_started_line(handle, wish))
    return handle


def _started_line(handle: AsyncRunHandle, wish: Wish) -> str:
    launched = handle.launched
    assert launched is not None
    words = "started" if any(start.created for start in launched.starts.values()) else "is there already"
    line = f"run {handle.run_id} {words} on {', '.join(launched.starts)}"
    lacking = wish.spec.rendezvous.min_members - len(launched.launch.nodes) * len(wish.spec.roles)
    if lacking > 0:
        line += (
            f"; it waits for {lacking} more of {wish.spec.rendezvous.min_members}: "
            f"`agentctl join {handle.run_id} --nodes ...` adds nodes"
        )
    return line


def _detached(handle: AsyncRunHandle, wish: Wish, output: str) -> int:
    """The run's id, and which nodes have not taken it yet."""
    from agentctl.show.messages import write_json, write_json_lines
    from agentctl.show.talk import say_problems
    from agentd.api import convert

    launched = handle.launched
    assert launched is not None
    message = convert.run_status_to_message(launched.status)
    if output == "json":
        write_json(message)
    elif output == "jsonl":
        write_json_lines([message])
    else:
        click.echo(handle.run_id)
    if wish.spec.controller_lease is not None:
        say(
            f"run {handle.run_id} is stopped when nobody renews it for {wish.spec.controller_lease:g} s: "
            f"`agentctl renew {handle.run_id} --keep` does"
        )
    if launched.problems:
        say_problems(launched.problems, "has not taken the run")
        say(f"the run waits for them; `agentctl join {handle.run_id} --nodes ...` adds nodes later")
        return ExitCode.PARTIAL
    return ExitCode.OK
