"""Which nodes a command speaks to: `--nodes`, a hostfile, AGENTD_NODES, else the agentd of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

import click

from agentctl import caller
from agentctl.flags import parse_nproc
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """A line of a hostfile."""

    target: str
    slots: int = 0
    """Workers there; 0: as the other flags say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The nodes of a command. None were named: this machine's agentd."""

    targets: tuple[str, ...] = ()
    slots: Mapping[str, int] = field(default_factory=dict)
    """Workers by node name, from a hostfile."""

    @property
    def is_local(self) -> bool:
        """Whether nobody named a node."""
        return not self.targets

    def for_client(self) -> tuple[str, ...] | None:
        """As the client library takes it."""
        return self.targets or None


def split_nodes(values: Iterable[str]) -> tuple[str, ...]:
    """`a,b` or several values; empty items are skipped."""
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def parse_hostfile(text: str) -> tuple[Host, ...]:
    """A target a line, `#` begins a comment, `slots=N` is the workers there. `ValueError` names the line."""
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = 0
        for word in words[1:]:
            key, _, value = word.partition("=")
            try:
                slots = int(parse_nproc(value)) if key == "slots" else 0
            except ValueError:
                slots = 0
            if not slots:
                raise ValueError(f"line {number}: {word!r} is not slots=N")
        hosts.append(Host(words[0], slots))
    if not hosts:
        raise ValueError("it names no node")
    return tuple(hosts)


def resolve_nodes(nodes: Sequence[str], hostfile: str | None) -> Nodes:
    """The nodes named, checked as far as that goes without asking anybody."""
    from agentd.api.errors import InvalidSpec
    from agentd_client.nodes import nodes_of

    if nodes and hostfile:
        raise click.UsageError("--nodes and --hostfile exclude each other")
    hosts: tuple[Host, ...] = ()
    source = "--nodes"
    targets = split_nodes(nodes)
    if nodes and not targets:
        raise click.UsageError("--nodes names no node")
    if hostfile:
        source = f"--hostfile {hostfile}"
        hosts = _read_hostfile(hostfile)
        targets = tuple(host.target for host in hosts)
    elif not targets and caller.ENVIRON.get("AGENTD_NODES"):
        source = "AGENTD_NODES"
        targets = split_nodes([caller.ENVIRON["AGENTD_NODES"]])
    try:
        known = nodes_of(targets)
    except InvalidSpec as error:
        raise click.UsageError(f"{source}: {error.facts['problem']}") from None
    slots = {node.name: host.slots for node, host in zip(known, hosts) if host.slots}  # noqa: B905
    return Nodes(targets=targets, slots=slots)


def _read_hostfile(path: str) -> tuple[Host, ...]:
    try:
        return parse_hostfile(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--hostfile {path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise click.UsageError(f"--hostfile {path}: {error}") from None
