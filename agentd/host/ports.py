"""A port for rank 0 of the next round, held so that nobody else gets it and a worker still can."""

from __future__ import annotations

import errno
import socket


class HeldPort:
    """A free TCP port, bound with SO_REUSEADDR and not listening.

    `bind(0)` of others never gets it, and a worker that binds it with SO_REUSEADDR, as TCPStore does, does.
    """

    def __init__(self) -> None:
        self._socket = _bound_socket()
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let go of the port."""
        self._socket.close()


def _bound_socket() -> socket.socket:
    try:
        return _bound(socket.AF_INET6, "::")
    except OSError as error:
        # No IPv6 in this kernel or namespace; anything else would fail below too.
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise
        return _bound(socket.AF_INET, "0.0.0.0")


def _bound(family: socket.AddressFamily, host: str) -> socket.socket:
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Both families: a worker may bind either.
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind((host, 0))
    except OSError:
        held.close()
        raise
    return held
