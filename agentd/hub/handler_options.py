"""What a user may tell the rendezvous handler of agentd, read from `RendezvousParameters`."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import field, fields
from typing import TYPE_CHECKING, Any

from agentd.api.types import RendezvousSpec
from agentd.core import defaults
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentd.elastic.rendezvous.api import RendezvousParameters

log = logging.getLogger(__name__)


def new_node_id() -> str:
    """A name that no other agent has, on this machine or elsewhere."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:80] or "agent"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """Options of the backend "agentd". All durations are seconds; `None` means the hub's default."""

    role: str | None = None
    """The member's role. Default: that of the agent's `WorkerSpec`."""
    roles: tuple[str, ...] = ()
    """All roles of the run, in rank order. Default: `role` alone."""
    local_world_size: int | None = None
    """Workers of this agent. Default: that of the agent's `WorkerSpec`."""
    max_restarts: int | None = None
    """Failures of the whole run that lead to a restart. Default: that of the agent's `WorkerSpec`."""
    max_membership_changes: int | None = None
    """Membership changes that lead to a restart. Default: unlimited."""
    join_timeout: float | None = None
    """How long the run waits for `min_nodes` agents; 600 by default."""
    last_call_timeout: float | None = None
    """How long a round waits for more agents once it has `min_nodes`; 5 by default."""
    hub_timeout: float | None = None
    """How long an agent waits for a hub that it needs and cannot reach; 600 by default.

    At its first contact no longer than `join_timeout`, if that is given.
    """
    heartbeat: float | None = None
    """Interval of signs of life; 1 by default."""
    lease: float | None = None
    """Silence that makes an agent lost; 5 by default."""
    stop_grace: float | None = None
    """How long any agent may take to stop its workers, its shutdown_timeout; 30 by default."""
    reattach_window: float = 0.0
    """How long an agent whose stream broke keeps its place. 0: a process that is killed is lost at once."""
    node_id: str = field(default_factory=new_node_id)
    """The agent's name. Default: `<hostname>-<pid>-<random>`."""
    request_id: str = ""
    """The same for all agents of one launch: none of them then begins the run anew after its end."""

    @classmethod
    def read(cls, parameters: RendezvousParameters) -> HandlerOptions:
        """The options of these parameters; ValueError for one that cannot be read."""
        unknown = sorted(parameters.config.keys() - _READERS.keys())
        if unknown:
            # Other backends have options of their own, and their users change the backend alone.
            log.warning("the rendezvous backend agentd has no option %s", ", ".join(unknown))
        given = {name: parameters.get(name) for name in _READERS}
        return cls(**{n: _READERS[n](n, value) for n, value in given.items() if value is not None})

    def rendezvous(self, min_nodes: int, max_nodes: int) -> RendezvousSpec:
        """The part of them that all agents must agree on."""
        return RendezvousSpec(
            min_members=min_nodes,
            max_members=max_nodes,
            join_timeout=self.join_timeout,
            last_call=self.last_call_timeout,
            hub_timeout=self.hub_timeout,
            heartbeat=self.heartbeat,
            lease=self.lease,
        )

    @property
    def patience(self) -> float:
        """`hub_timeout` with its default."""
        return defaults.HUB_TIMEOUT if self.hub_timeout is None else self.hub_timeout

    @property
    def first_patience(self) -> float:
        """How long the first contact may take: nobody waits for a run's hub longer than for the run."""
        return self.patience if self.join_timeout is None else min(self.join_timeout, self.patience)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the rendezvous option {name}={value!r} must be a number of seconds") from None


def _count(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the rendezvous option {name}={value!r} must be a whole number") from None


def _text(_name: str, value: Any) -> str:
    return str(value)


def _names(_name: str, value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(str(part).strip() for part in parts)


def _reader(annotation: str) -> Callable[[str, Any], Any]:
    if annotation.startswith("tuple"):
        return _names
    return {"float": _number, "int": _count, "str": _text}[annotation.partition(" ")[0]]


_READERS = {option.name: _reader(str(option.type)) for option in fields(HandlerOptions)}
