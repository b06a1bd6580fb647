"""Which nodes a client speaks of: the name that a run's spec has for each, and where its agentd answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from agentd.api.errors import InvalidSpec
from agentd.api.targets import DEFAULT_PORT, Target, default_socket, parse_target
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """A node by name and target."""

    name: str
    target: str

    @property
    def is_local_socket(self) -> bool:
        """Whether the way there is a Unix socket: nobody else reads what is sent."""
        return parse_target(self.target).is_unix


def node_of(text: str) -> Node:
    """The node at a target. Spellings of one target give one name, so that equal node lists compare equal."""
    target = parse_target(text.strip())
    return Node(short_name(target), str(target))


def short_name(target: Target) -> str:
    """A target without what goes without saying."""
    if target.path or target.port != DEFAULT_PORT:
        return str(target)
    return f"[{target.host}]" if ":" in target.host else target.host


def nodes_of(targets: Iterable[str] | Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes of a list of targets, or of a mapping from names to targets.

    Raises `InvalidSpec` for a target that cannot be read and for a node that is named twice.
    """
    if isinstance(targets, Mapping):
        nodes = tuple(Node(name, str(parse_target(target))) for name, target in targets.items())
    else:
        nodes = tuple(node_of(target) for target in targets)
    seen: dict[str, str] = {}
    for node in nodes:
        if node.target in seen:
            raise InvalidSpec("nodes", f"{node.target} is named twice")
        seen[node.target] = node.name
    return nodes


def some_nodes_of(targets: Iterable[str] | Mapping[str, str]) -> tuple[Node, ...]:
    """As `nodes_of`; raises `InvalidSpec` also when none is named, so that no run is started nowhere."""
    nodes = nodes_of(targets)
    if not nodes:
        raise InvalidSpec("targets", "no node is named; None stands for this machine's agentd")
    return nodes


def local_node(environ: Mapping[str, str] | None = None) -> Node:
    """The agentd of this machine and user, by its default socket."""
    return node_of(str(default_socket(os.environ if environ is None else environ, os.getuid())))


def by_name(nodes: Sequence[Node], name: str) -> Node:
    """The node a spec calls `name`; a name nobody has given a target for is itself a target."""
    for node in nodes:
        if node.name == name:
            return node
    target = parse_target(name)
    return next((node for node in nodes if node.target == str(target)), Node(name, str(target)))
