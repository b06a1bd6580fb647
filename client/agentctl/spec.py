"""From the flags of `agentctl run` to the spec of a run. Reads the `--spec` file and nothing else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import click

from agentctl import torchrun
from agentctl.hosts import Nodes
from agentd.api.errors import InvalidSpec
from agentd.api.types import (
    MAX_DURATION,
    NAME,
    SHORTEST_LEASE,
    Command,
    EntrypointKind,
    IsolationPolicy,
    LocalWorldSize,
    LocalWorldSizeRule,
    RendezvousSpec,
    RoleSpec,
    RunSpec,
)
from agentd.quickdata import dataclass
from agentd_client.nodes import node_of, nodes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFlags:
    """The flags that describe a run. None: not given."""

    script: str | None = None
    script_args: tuple[str, ...] = ()
    module: bool = False
    no_python: bool = False
    spec_file: str | None = None
    run_id: str | None = None
    role: str | None = None
    nnodes: tuple[int, int] | None = None
    nproc: int | str | None = None
    max_restarts: int | None = None
    monitor_interval: float | None = None
    stop_grace: float | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    master_addr: str | None = None
    master_port: int | None = None
    log_dir: str | None = None
    python: str | None = None
    workdir: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    no_rejoin: bool = False
    on_isolation: IsolationPolicy | None = None
    controller_lease: float | None = None
    preload: tuple[str, ...] = ()
    standby: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A run to be started: its spec, the nodes it goes to, the hub if one was named."""

    spec: RunSpec
    targets: tuple[str, ...]
    """Empty: this machine's agentd."""
    hub: str | None = None


def build_wish(flags: SpecFlags, nodes: Nodes) -> Wish:
    """The run that the flags describe. Raises `click.UsageError` naming the flag that is wrong."""
    given = _from_file(flags) if flags.spec_file else _from_flags(flags, nodes)
    targets = nodes.targets or given.nodes
    known = nodes_of(targets)
    names_matter = len(known) > 1 or any(role.nodes or role.local_world_size_by_node for role in given.roles)
    spec = replace(
        given,
        run_id=_run_id(flags, given),
        # One node alone needs no list: its runs compare equal by whatever name it is reached.
        nodes=tuple(node.name for node in known) if names_matter else (),
        rendezvous=_rendezvous(flags, given.rendezvous),
        roles=tuple(_finished(role, flags) for role in given.roles),
        **_present(
            max_restarts=flags.max_restarts,
            stop_grace=flags.stop_grace,
            monitor_interval=flags.monitor_interval,
            labels=flags.labels or None,
            no_rejoin=flags.no_rejoin or None,
            on_isolation=flags.on_isolation,
            controller_lease=flags.controller_lease,
            preload=flags.preload or None,
            standby=flags.standby or None,
        ),
    )
    _check_role_nodes(spec)
    _check_times(spec)
    return Wish(spec=spec, targets=tuple(targets), hub=_hub(flags))


def _from_file(flags: SpecFlags) -> RunSpec:
    from agentctl.specfile import parse_spec

    path = flags.spec_file or ""
    if flags.script is not None:
        raise click.UsageError(f"--spec {path} names the programs; {flags.script!r} is one too many")
    single = {
        "--role": flags.role,
        "--nproc-per-node": flags.nproc,
        "-m": flags.module or None,
        "--no-python": flags.no_python or None,
        "--devices": flags.devices or None,
        "--master-addr": flags.master_addr,
        "--master-port": flags.master_port,
        "--log-dir": flags.log_dir,
    }
    for flag, value in single.items():
        if value is not None:
            raise click.UsageError(f"{flag} belongs to one role: write it into {path}")
    try:
        return parse_spec(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--spec {path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise click.UsageError(f"--spec {path}: {error}") from None


def _from_flags(flags: SpecFlags, nodes: Nodes) -> RunSpec:
    if flags.script is None:
        what = "a module" if flags.module else "a program" if flags.no_python else "a script"
        raise click.UsageError(f"name {what} to run, as in `agentctl run train.py`, or give --spec FILE.toml")
    if flags.module and flags.no_python:
        raise click.UsageError("-m runs a Python module: it excludes --no-python")
    sizes = {} if flags.nproc is not None else dict(nodes.slots)
    size = _size(flags.nproc)
    if len(nodes.targets) == 1 and sizes:
        size, sizes = next(iter(sizes.values())), {}
    role = RoleSpec(
        role=flags.role or "default",
        command=Command(
            entrypoint=flags.script,
            arguments=flags.script_args,
            kind=_kind(flags),
        ),
        local_world_size=size,
        local_world_size_by_node=sizes,
        devices=flags.devices,
        master_addr=flags.master_addr or "",
        master_port=flags.master_port or 0,
        log_dir=str(Path(flags.log_dir).absolute()) if flags.log_dir else "",
    )
    if not NAME.fullmatch(role.role):
        raise click.UsageError(f"--role: {role.role!r} is no name: 1 to 128 of A-Z a-z 0-9 . _ -")
    return RunSpec(run_id="", roles=(role,))


def _kind(flags: SpecFlags) -> EntrypointKind:
    if flags.module:
        return EntrypointKind.MODULE
    return EntrypointKind.EXECUTABLE if flags.no_python else EntrypointKind.SCRIPT


def _size(nproc: int | str | None) -> LocalWorldSize:
    if nproc is None:
        return 1
    return LocalWorldSizeRule(nproc) if isinstance(nproc, str) else nproc


def _finished(role: RoleSpec, flags: SpecFlags) -> RoleSpec:
    """Where the program runs and with what, as far as the role itself does not say."""
    command = role.command
    python = command.python
    if command.kind is not EntrypointKind.EXECUTABLE:
        python = python or flags.python or sys.executable
    directory = command.working_directory or flags.workdir
    return replace(
        role,
        command=replace(
            command,
            python=python,
            working_directory=str(Path(directory).absolute()) if directory else str(Path.cwd()),
        ),
        env={**role.env, **flags.env},
    )


def _rendezvous(flags: SpecFlags, given: RendezvousSpec) -> RendezvousSpec:
    try:
        changes: dict[str, Any] = dict(torchrun.durations(flags.conf))
    except ValueError as error:
        raise click.UsageError(f"--rdzv-conf: {error}") from None
    if flags.nnodes is not None:
        changes["min_members"], changes["max_members"] = flags.nnodes
    return replace(given, **changes)


def _run_id(flags: SpecFlags, given: RunSpec) -> str:
    if flags.run_id is not None:
        if not NAME.fullmatch(flags.run_id):
            raise click.UsageError(
                f"--run-id: {flags.run_id!r} is no run id: 1 to 128 of A-Z a-z 0-9 . _ -, "
                "not starting with a dot"
            )
        return flags.run_id
    return given.run_id or new_run_id(given.roles[0].command.entrypoint)


def new_run_id(entrypoint: str) -> str:
    """An id that nobody else has, which tells the program."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(entrypoint).stem).strip("-")[:40] or "run"
    return f"{stem}-{os.urandom(4).hex()}"


def _hub(flags: SpecFlags) -> str | None:
    if not flags.endpoint:
        return None
    try:
        return node_of(flags.endpoint).name
    except InvalidSpec as error:
        raise click.UsageError(f"--rdzv-endpoint: {error.facts['problem']}") from None


def _check_role_nodes(spec: RunSpec) -> None:
    for role in spec.roles:
        for node in (*role.nodes, *role.local_world_size_by_node):
            if node not in spec.nodes:
                raise click.UsageError(
                    f"role {role.role!r} names node {node}, which is not in the run's node list"
                )


def _check_times(spec: RunSpec) -> None:
    """Those of the run, from a flag or a file. agentd would refuse them too, but after it was asked."""
    for flag, seconds, shortest in (
        ("--stop-grace", spec.stop_grace, 0.0),
        ("--monitor-interval", spec.monitor_interval, 0.0),
        ("--controller-lease", spec.controller_lease, SHORTEST_LEASE),
    ):
        if seconds is not None and not shortest <= seconds <= MAX_DURATION:
            raise click.UsageError(f"{flag}: {seconds:g} s is not a time from {shortest:g} s to a year")


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
