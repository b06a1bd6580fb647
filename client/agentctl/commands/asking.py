"""How commands reach nodes: a fleet for their flags, and a good answer where this machine has no agentd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agentctl import caller
from agentctl.exits import CommandFailed, ExitCode
from agentctl.hosts import Nodes

if TYPE_CHECKING:
    from agentd_client import Fleet


class NoLocalAgent(CommandFailed):
    """Nobody named a node and this machine has no agentd."""

    def __init__(self, target: str, *, can_be_standalone: bool) -> None:
        standalone = (
            " Or give --standalone: it starts an agentd for this run alone, which ends with it."
            if can_be_standalone
            else ""
        )
        super().__init__(
            f"there is no agentd of yours on this machine: nobody answers at {target}. "
            f"Start one with `agentd`, or name nodes with --nodes or AGENTD_NODES.{standalone}",
            ExitCode.UNREACHABLE,
        )


@contextlib.contextmanager
def asking(nodes: Nodes, *, can_be_standalone: bool = False) -> Iterator[None]:
    """Within the block, an unreachable default agentd is explained."""
    if not nodes.is_local:
        yield
        return
    from agentd.api.errors import Unreachable
    from agentd_client.nodes import local_node

    target = local_node(caller.ENVIRON).target
    if not Path(target.removeprefix("unix:")).exists():
        raise NoLocalAgent(target, can_be_standalone=can_be_standalone)
    try:
        yield
    except Unreachable:
        raise NoLocalAgent(target, can_be_standalone=can_be_standalone) from None


@contextlib.contextmanager
def open_fleet(nodes: Nodes, deadline_s: float) -> Iterator[Fleet]:
    """A fleet of the nodes of a command."""
    from agentd_client import Fleet

    with asking(nodes), Fleet(nodes.for_client(), timeout_s=deadline_s) as fleet:
        yield fleet
