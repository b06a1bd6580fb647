"""Ports of this machine, held or listened on, and the address under which others reach it."""

from __future__ import annotations

import contextlib
import errno
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ["HeldPort", "RoundPort", "hold_with", "listening_everywhere", "own_address"]

BACKLOG = 1024  # who finds no room in it tries again a second later


class HeldPort:
    """A free TCP port, bound with SO_REUSEADDR and not listening.

    `bind(0)` of others never gets it, and who binds it with SO_REUSEADDR, as TCPStore does, gets it. Close it
    when nobody is to listen there any more.
    """

    def __init__(self) -> None:
        self._socket = _bound_everywhere(0)
        self.number: int = self._socket.getsockname()[1]
        """The port's number."""

    def close(self) -> None:
        """Let go of the port; a second time does nothing."""
        self._socket.close()


class RoundPort:
    """The port of a run's present round, held; each round has another one than the last."""

    def __init__(self) -> None:
        self._held: HeldPort | None = None

    def next(self) -> int:
        """The number of the next round's port."""
        # The former one is let go after it, so that they differ.
        former, self._held = self._held, HeldPort()
        if former is not None:
            former.close()
        return self._held.number

    def close(self) -> None:
        """Let go of it, if there is one; `next` may follow."""
        former, self._held = self._held, None
        if former is not None:
            former.close()


_holds: weakref.WeakKeyDictionary[object, weakref.finalize[[], object]] = weakref.WeakKeyDictionary()


def hold_with(owner: object, port: HeldPort) -> None:
    """Hold a port for as long as `owner` lives, or until another one is held with it."""
    former = _holds.get(owner)
    _holds[owner] = weakref.finalize(owner, port.close)
    if former is not None:
        former()


def listening_everywhere(port: int) -> socket.socket:
    """Listen on all addresses of this machine, of IPv4 and, where it has that, IPv6; 0 is any free port.

    Raises `OSError` if the port is taken or may not be had.
    """
    listener = _bound_everywhere(port)
    try:
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def own_address() -> str:
    """The name or address of this machine to give to others.

    Its full name where that leads to more than itself; else, where it does not resolve or means the loopback
    as many a hosts file has it, the address of the default route; without a route, the name all the same.
    """
    import socket

    name = socket.getfqdn()
    return name if _is_reachable(name) else _route_address() or name


def _is_reachable(name: str) -> bool:
    import ipaddress
    import socket

    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return not any(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _route_address() -> str:
    import socket

    # Nothing is sent: connecting a datagram socket only asks the kernel for the way.
    for family, far_away in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far_away, 9))
            return str(probe.getsockname()[0])
    return ""


def _bound_everywhere(port: int) -> socket.socket:
    import socket

    try:
        return _bound(socket.AF_INET6, "::", port)
    except OSError as error:
        # No IPv6 in this kernel or namespace; anything else would fail below too.
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise
        return _bound(socket.AF_INET, "0.0.0.0", port)


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    import socket

    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Both families: who listens there may bind either.
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held
