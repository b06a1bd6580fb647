"""Endpoints and options of a rendezvous as text, and whether a host name means this machine."""

from __future__ import annotations

import re

__all__ = ["matches_machine_hostname", "parse_rendezvous_config", "parse_rendezvous_endpoint"]

MAX_PORT = 2**16 - 1


def parse_rendezvous_endpoint(endpoint: str | None, default_port: int) -> tuple[str, int]:
    """Host and port of `host[:port]`; an IPv6 address with a port stands in brackets.

    An empty endpoint is localhost. ValueError for what cannot be a host or a port.
    """
    text = (endpoint or "").strip()
    if not text:
        return "localhost", default_port
    host, port = _split(text)
    if port is not None and not (re.fullmatch(r"\d{1,5}", port, re.ASCII) and int(port) <= MAX_PORT):
        raise ValueError(f"the rendezvous endpoint {text!r} has no port between 0 and {MAX_PORT}: {port!r}")
    if not re.fullmatch(r"[\w.:-]+", host):
        raise ValueError(f"the rendezvous endpoint {text!r} names no host: give a name or an IP address")
    return host, default_port if port is None else int(port)


def parse_rendezvous_config(config_str: str) -> dict[str, str]:
    """Options from `key=value,key=value`; a value may hold further `=`. ValueError names a bad part."""
    text = config_str.strip()
    config: dict[str, str] = {}
    for part in text.split(",") if text else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"the rendezvous options {text!r} must be key=value pairs; this is none: {part!r}"
            )
        config[key] = value
    return config


def matches_machine_hostname(host: str) -> bool:
    """Whether `host` means this machine: localhost, a loopback address, its own name or one of its addresses.

    May miss an alias or an address of a further network card.
    """
    import socket

    if host in ("localhost", socket.gethostname()) or _is_loopback(host):
        return True
    own_names, own_addresses = _resolved(socket.gethostname())
    return host in own_names or bool(own_addresses & ({host} | _resolved(host)[1]))


# The names under which torch has them.
_parse_rendezvous_config = parse_rendezvous_config
_matches_machine_hostname = matches_machine_hostname


def _split(text: str) -> tuple[str, str | None]:
    """Host and port. More than one colon without brackets is a bare IPv6 address."""
    if bracketed := re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text):
        return bracketed[1], bracketed[2]
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _resolved(host: str) -> tuple[set[str], set[str]]:
    """Canonical names and addresses of a host; none if it does not resolve."""
    import socket

    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP, flags=socket.AI_CANONNAME)
    except (OSError, UnicodeError):
        return set(), set()
    return {name for *_, name, _ in found if name}, {str(entry[4][0]) for entry in found}
