"""Which address of this node others are told.

The flag; else a specific bound address; else the local address of the route to the hub. Names from
the resolver are never guessed: a host's own idea of its name often means nothing to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentd.api.patience import within
from agentd.api.targets import Target, parse_target
from agentd.daemon.listen import is_loopback, is_wildcard
from agentd.hub.route import local_address_to

LOOPBACK = "127.0.0.1"
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses reserved for documentation: no packet is sent, the kernel only picks the way out."""
_ROUTE_TIMEOUT = 5.0
"""Seconds the resolver has for a hub's name."""


class AdvertisedAddress:
    """Answers, for each hub, how this node is reached from there.

    The host of an answer is where its workers are reached too: MASTER_ADDR, if rank 0 is here.
    """

    def __init__(self, flag: str, bound: Sequence[Target]) -> None:
        self._tcp = tuple(target for target in bound if not target.is_unix)
        self._unix = tuple(target for target in bound if target.is_unix)
        self._flag = parse_target(flag, default_port=0) if flag else None

    @property
    def default(self) -> str:
        """The address shown where no hub is in question."""
        return self._at(self._host_without_hub())

    async def for_hub(self, hub_address: str = "") -> str:
        """The target for the members of a run. An empty `hub_address`: this node is the hub."""
        fixed = self._fixed_host()
        if fixed:
            return self._at(fixed)
        if not hub_address:
            return self._at(self._host_without_hub())
        hub = parse_target(hub_address)
        if hub.is_unix:
            return self._at(self._loopback_host())
        return self._at(await _route_to(hub) or self._host_without_hub())

    def _fixed_host(self) -> str:
        if self._flag:
            return self._flag.host
        return next((t.host for t in self._tcp if not is_wildcard(t.host) and not is_loopback(t.host)), "")

    def _host_without_hub(self) -> str:
        fixed = self._fixed_host()
        if fixed or not any(is_wildcard(target.host) for target in self._tcp):
            return fixed or self._loopback_host()
        return next(filter(None, (local_address_to(host, 9) for host in _ELSEWHERE)), self._loopback_host())

    def _loopback_host(self) -> str:
        return next((target.host for target in self._tcp if is_loopback(target.host)), LOOPBACK)

    def _at(self, host: str) -> str:
        if self._flag and self._flag.port:
            return str(self._flag)
        if not self._tcp and host == LOOPBACK:
            return str(self._unix[0])
        serving = [t for t in self._tcp if t.host == host or is_wildcard(t.host)] or self._tcp
        # Without any TCP port only the workers are there.
        return str(Target(host=host, port=serving[0].port if serving else 0))


async def _route_to(target: Target) -> str:
    loop = asyncio.get_running_loop()
    # A name may have to be asked for: never on the loop, and never for long.
    asking = loop.run_in_executor(None, local_address_to, target.host, target.port)
    try:
        return await within(_ROUTE_TIMEOUT, asking)
    except asyncio.TimeoutError:
        return ""
