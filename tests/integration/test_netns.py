"""The rig for network namespaces itself: cables can be pulled, one way or both, and nothing is left."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.fleet import is_gone
from tests.support.netns import Network, network
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.netns]

ANSWERS = """
import socket
served = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
served.bind(("0.0.0.0", 9))
while True:
    word, whence = served.recvfrom(64)
    print(word.decode(), flush=True)
    served.sendto(word, whence)
"""
ASKS = """
import socket, sys
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(0.1)
for attempt in range(int(sys.argv[2])):
    try:
        asking.sendto(b"hello", (sys.argv[1], 9))
        asking.recv(64)
        sys.exit(0)
    except OSError:
        pass
sys.exit(1)
"""


@contextlib.contextmanager
def answering(prefix: Sequence[str], heard: Path) -> Iterator[None]:
    with heard.open("wb") as output:
        server = subprocess.Popen([*prefix, sys.executable, "-c", ANSWERS], stdout=output)
    try:
        yield
    finally:
        server.kill()
        server.wait(10)


def reaches(net: Network, sender: str, receiver: str, tries: int = 100) -> bool:
    """Whether an answer comes to what one asks the other."""
    prefix = net.within(sender) if sender else net.controller()
    command = [*prefix, sys.executable, "-c", ASKS, net.address(receiver), str(tries)]
    return subprocess.run(command, timeout=60, check=False).returncode == 0


def test_a_node_without_its_cable_is_reached_by_nobody_until_it_is_healed(tmp_path: Path) -> None:
    with network("a", "b") as net, answering(net.within("b"), tmp_path / "heard"):
        assert reaches(net, "a", "b")
        assert reaches(net, "", "b"), "the controller has a cable too"
        net.partition("b")
        assert not reaches(net, "a", "b", tries=2)
        assert not reaches(net, "", "b", tries=2)
        net.heal("b")
        assert reaches(net, "a", "b")


def test_a_cut_is_one_way(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    with network("a", "b") as net, answering(net.within("b"), heard):
        assert reaches(net, "a", "b"), "the one who answers is there"
        before = heard.read_text().count("hello")
        net.cut("b", "a")
        assert not reaches(net, "a", "b", tries=3), "the answers are lost"
        wait_until(lambda: heard.read_text().count("hello") > before, what="the questions are not")
        assert reaches(net, "", "b")
        net.mend("b", "a")
        assert reaches(net, "a", "b")


def test_a_disk_of_a_node_is_small_and_its_own(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with network("a") as net:
        net.disk("a", state, "64k")
        write = [*net.within("a"), "dd", "if=/dev/zero", f"of={state}/filler", "bs=1k", "count=100"]
        full = subprocess.run(write, capture_output=True, text=True, timeout=20, check=False)
        assert "No space left" in full.stderr
        assert (net.root("a") / state.relative_to("/") / "filler").exists()
        assert not list(state.iterdir())


def test_networks_are_apart_and_end_with_the_test(tmp_path: Path) -> None:
    with network("a") as one, network("a", "b") as two:
        with answering(two.within("b"), tmp_path / "heard"):
            assert reaches(two, "a", "b")
            other = [*one.within("a"), sys.executable, "-c", ASKS, two.address("b"), "1"]
            assert subprocess.run(other, timeout=60, check=False).returncode == 1
        holders = [int(prefix[2]) for prefix in (one.within("a"), two.controller(), two.within("b"))]
        assert not any(map(is_gone, holders))
    assert all(map(is_gone, holders))


def test_a_test_that_is_killed_leaves_no_namespace() -> None:
    program = "import time\nfrom tests.support.netns import network\n"
    program += "with network('a') as net:\n print(net.within('a')[2], flush=True)\n time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        holder = int(owner.stdout.readline())
        assert not is_gone(holder)
        owner.kill()
    wait_until(lambda: is_gone(holder))
