"""Where agentd serves: which addresses it may take, and whether they are free.

Without transport security whoever reaches the address can run programs as agentd's user. So it is a
Unix socket in a private directory or loopback; anything else needs `insecure`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from agentd.api.targets import Target, parse_target
from agentd.daemon.exits import AlreadyRunning, ListenFailed
from agentd.daemon.locks import FileLock
from agentd.quickdata import dataclass

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path, by the kernel."""

Resolver = Callable[[Target], Sequence[str]]
"""A host's addresses, numeric."""


@dataclass(frozen=True, slots=True)
class ListenPlan:
    """Numeric endpoints to bind, and what the operator must be told about them."""

    endpoints: tuple[Target, ...]
    warnings: tuple[str, ...] = ()


def plan(listen: Sequence[str], *, insecure: bool, resolve: Resolver) -> ListenPlan:
    """The endpoints for `--listen`. Raises `ListenFailed` for one that would be open to strangers."""
    endpoints: list[Target] = []
    warnings: list[str] = []
    for text in listen:
        target = parse_target(text)
        if target.is_unix:
            endpoints.append(target)
            continue
        hosts = sorted(resolve(target), key=lambda host: ":" in host)
        # Two addresses of one name cannot have the same free port for sure.
        for host in hosts[:1] if target.port == 0 else hosts:
            endpoint = Target(host=host, port=target.port)
            endpoints.append(endpoint)
            warnings.append(_judge(endpoint, text, insecure=insecure))
    return ListenPlan(tuple(dict.fromkeys(endpoints)), tuple(dict.fromkeys(warnings)))


def is_loopback(host: str) -> bool:
    """Whether a numeric address stays on this machine."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def is_wildcard(host: str) -> bool:
    """Whether a numeric address stands for all of the machine's."""
    return ipaddress.ip_address(host.partition("%")[0]).is_unspecified


def resolve_host(target: Target) -> tuple[str, ...]:
    """The addresses of a host that this machine could bind. Asks the resolver."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenFailed(str(target), f"{target.host!r} is not known: {error.strerror}") from None
    hosts = dict.fromkeys(str(address[0]) for _, _, _, _, address in found)
    usable = tuple(host for host in hosts if _can_bind(host))
    if not usable:
        raise ListenFailed(str(target), f"{', '.join(hosts)} is no address of this machine")
    return usable


def _judge(endpoint: Target, text: str, *, insecure: bool) -> str:
    if is_loopback(endpoint.host):
        return (
            f"{text} is open to every user of this machine: any of them can run programs as this agentd's "
            "user. A Unix socket is not."
        )
    if not insecure:
        raise ListenFailed(
            text,
            "nobody is asked who they are yet, so whoever reaches this address could run programs as this "
            "agentd's user. Use loopback or a Unix socket (through an ssh tunnel from elsewhere), or add "
            "--insecure where the whole network is trusted.",
        )
    return f"{text} is served without any security: whoever reaches it can run programs as this agentd's user"


def _can_bind(host: str) -> bool:
    # A name such as localhost may have an IPv6 address on a machine without IPv6.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def claim_port(endpoint: Target, find_holder: Callable[[int], int | None]) -> None:
    """Say now, by name, what gRPC would only call a failed bind."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AlreadyRunning(f"port {endpoint}", find_holder(endpoint.port)) from None
            raise ListenFailed(str(endpoint), os.strerror(error.errno or 0)) from None


def claim_socket(endpoint: Target, *, private: bool) -> FileLock:
    """Make a socket's directory ready and lock its place; what a dead daemon left there is removed.

    `private`: the directory must be closed to everybody else, as that of the default socket is.
    """
    path = endpoint.path
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise ListenFailed(
            str(endpoint), f"the path is longer than {SOCKET_PATH_LIMIT} bytes; use a shorter one"
        )
    directory = Path(path).parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_directory(directory, endpoint, private=private)
        lock = FileLock.acquire(f"{path}.lock", f"socket {endpoint}")
    except OSError as error:
        raise ListenFailed(str(endpoint), f"{directory}: {os.strerror(error.errno or 0)}") from None
    try:
        _remove_stale(endpoint)
    except BaseException:
        lock.release()
        raise
    return lock


def _check_directory(directory: Path, endpoint: Target, *, private: bool) -> None:
    facts = directory.stat()
    if facts.st_uid not in ((os.getuid(),) if private else (os.getuid(), 0)):
        raise ListenFailed(str(endpoint), f"{directory} belongs to user {facts.st_uid}, not to this one")
    sticky = facts.st_mode & stat.S_ISVTX
    forbidden = 0o077 if private else 0o022
    if stat.S_IMODE(facts.st_mode) & forbidden and (private or not sticky):
        raise ListenFailed(
            str(endpoint),
            f"{directory} has mode {stat.S_IMODE(facts.st_mode):04o}, so others could put their own there. "
            f"Do: chmod go-rwx {directory}",
        )


def _remove_stale(endpoint: Target) -> None:
    try:
        mode = Path(endpoint.path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenFailed(
            str(endpoint), "a file that is no socket stands there; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        # Its lock is ours, so no agentd serves it; another program might.
        if probe.connect_ex(endpoint.path) == 0:
            raise AlreadyRunning(f"socket {endpoint}", None)
    Path(endpoint.path).unlink()
