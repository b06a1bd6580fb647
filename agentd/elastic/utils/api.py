"""Small helpers under torch's names: an environment variable, a free socket, macros in arguments."""

from __future__ import annotations

import os
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

__all__ = ["get_env_variable_or_raise", "get_socket_with_port", "macros"]


def get_env_variable_or_raise(env_name: str) -> str:
    """The value of an environment variable; ValueError if it is not set."""
    try:
        return os.environ[env_name]
    except KeyError:
        raise ValueError(f"the environment variable {env_name} is not set") from None


def get_socket_with_port() -> socket.socket:
    """A socket that listens on a free port of localhost; its owner closes it.

    Connections to the port succeed. For a port that somebody else is to bind, see
    `agentd.elastic.utils.ports.HeldPort`. OSError if no address of localhost can be bound.
    """
    import socket

    error: OSError | None = None
    for family, kind, proto, _, address in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM):
        try:
            found = socket.socket(family, kind, proto)
        except OSError as problem:  # a family the kernel does not have
            error = problem
            continue
        try:
            found.bind(address)
            found.listen(0)
        except OSError as problem:
            error = problem
            found.close()
        else:
            return found
    raise error or OSError("localhost has no address")


class macros:  # noqa: N801  torch's name
    """What stands in arguments for a worker's own values."""

    local_rank = "${local_rank}"
    """The worker's local rank."""

    @staticmethod
    def substitute(args: list[Any], local_rank: str) -> list[Any]:
        """The arguments with macros replaced in texts; unknown ones stay, and `$$` becomes `$`, as in torch.

        The agent itself leaves a shell's `$$` alone.
        """
        return [
            Template(arg).safe_substitute(local_rank=local_rank) if isinstance(arg, str) else arg
            for arg in args
        ]
