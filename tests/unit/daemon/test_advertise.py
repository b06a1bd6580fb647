"""Which address others are told, by flag, by what is bound, by the route to the hub."""

from __future__ import annotations

import pytest

from agentd.api.targets import Target
from agentd.daemon import advertise
from agentd.daemon.advertise import AdvertisedAddress

LOOPBACK = Target(host="127.0.0.1", port=1)
LAN = Target(host="10.0.0.5", port=2)
ANY = Target(host="0.0.0.0", port=3)
SOCKET = Target(path="/run/a.sock")

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has 10.0.0.5 towards everything but itself."""

    def route(host: str, port: int) -> str:
        return "127.0.0.1" if host.startswith("127.") else "" if host == "nowhere" else "10.0.0.5"

    monkeypatch.setattr(advertise, "local_address_to", route)


@pytest.mark.parametrize(
    ("flag", "bound", "hub", "address"),
    [
        ("gpu7", [LOOPBACK, LAN], "x:1", "gpu7:1"),
        ("gpu7:99", [LAN], "x:1", "gpu7:99"),
        ("gpu7", [SOCKET], "x:1", "gpu7:0"),
        ("", [LOOPBACK, LAN], "192.0.2.9:1", "10.0.0.5:2"),
        ("", [ANY], "192.0.2.9:1", "10.0.0.5:3"),
        ("", [ANY], "127.0.0.1:1", "127.0.0.1:3"),
        ("", [ANY], "", "10.0.0.5:3"),
        ("", [ANY], "nowhere:1", "10.0.0.5:3"),
        ("", [LOOPBACK], "", "127.0.0.1:1"),
        ("", [LOOPBACK], "127.0.0.1:7", "127.0.0.1:1"),
        # Its agentd is reached through a tunnel, its workers are not.
        ("", [LOOPBACK], "192.0.2.9:1", "10.0.0.5:1"),
        ("", [SOCKET], "192.0.2.9:1", "10.0.0.5:0"),
        ("", [SOCKET], "", "unix:/run/a.sock"),
        ("", [SOCKET], "unix:/run/b.sock", "unix:/run/a.sock"),
        ("", [SOCKET, LOOPBACK], "unix:/run/b.sock", "127.0.0.1:1"),
        ("", [Target(host="::1", port=5)], "", "[::1]:5"),
    ],
)
async def test_the_address_for_a_hub(flag: str, bound: list[Target], hub: str, address: str) -> None:
    assert await AdvertisedAddress(flag, bound).for_hub(hub) == address
