"""The address that this machine has for others on the way to a hub."""

from __future__ import annotations

import ipaddress
import socket

from agentd.api.errors import InvalidSpec
from agentd.api.targets import Target, parse_target

LOOPBACK = "127.0.0.1"


def local_address_to(host: str, port: int) -> str:
    """The address this machine would speak from; empty where there is no way. May ask the resolver."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return ""
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return ""


def address_of_agent(given: str, endpoint: str, advertised: str) -> str:
    """Where workers of an agent are reached, as a target without a port.

    That is what its user gave, else the local address of the route to the hub. An agent that reaches its hub
    by way of the loopback is on the hub's machine: others find both at the address the hub advertises.
    """
    host = given or _route_to(endpoint)
    if not given and _is_loopback(host):
        host = _host_of(advertised) or host
    return str(Target(host=host, port=0))


def _route_to(endpoint: str) -> str:
    target = parse_target(endpoint)
    return LOOPBACK if target.is_unix else local_address_to(target.host, target.port) or LOOPBACK


def _host_of(advertised: str) -> str:
    try:
        return parse_target(advertised).host
    except InvalidSpec:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
