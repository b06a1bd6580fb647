"""Real network namespaces for tests: each node has a cable to one switch, and cables can be pulled.

Every namespace is held by a small process that dies with the test's own process, and nothing has a name in
the file system or an address outside: so nothing outlives a test, not even one that is killed, and tests in
parallel cannot meet. A node may have its own mounts too, for a state directory on a small disk.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import wait_until

COMMAND_S = 20.0
DEVICE = "eth0"
BRIDGE = "switch"
SUBNET = "10.77.0"
CONTROLLER = 254
"""Last part of the switch's own address: from there every node with a cable is reached."""
NOBODY = "02:00:00:00:00:99"
"""A hardware address that no node has: the switch carries such frames to nobody who would take them."""


@dataclass(frozen=True)
class Holder:
    """A process whose namespaces others enter."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def root(self) -> Path:
        """The file system as this node sees it."""
        return Path(f"/proc/{self.pid}/root")

    def entering(self, mounts: bool) -> tuple[str, ...]:
        """A prefix that has a command run inside, under the pid that it is started with."""
        kinds = ("--net", "--mount") if mounts else ("--net",)
        return ("nsenter", "--target", str(self.pid), *kinds, "--")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(COMMAND_S)


@dataclass
class Network:
    """Nodes on one switch. Make it with `network`."""

    _switch: Holder
    _nodes: dict[str, Holder] = field(default_factory=dict)
    _ports: dict[str, int] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """The node's IPv4 address."""
        return f"{SUBNET}.{self._ports[name]}"

    def within(self, name: str) -> tuple[str, ...]:
        """A prefix for commands on a node, `[*net.within("a"), "agentd", ...]`; the pid is the command's."""
        return self._nodes[name].entering(mounts=True)

    def controller(self) -> tuple[str, ...]:
        """A prefix for commands that reach every node: a machine of its own on the switch."""
        return self._switch.entering(mounts=False)

    def holder(self, name: str) -> int:
        """The pid that holds the node's namespaces."""
        return self._nodes[name].pid

    def root(self, name: str) -> Path:
        """The node's file system, its own mounts included."""
        return self._nodes[name].root

    def add(self, name: str) -> None:
        """A node with a cable."""
        number = len(self._nodes) + 1
        holder = self._nodes[name] = _hold("--net", "--mount")
        self._ports[name] = number
        port = f"p{number}"
        _ip(
            self._switch,
            f"link add {port} type veth peer name {DEVICE} netns {holder.pid}",
            f"link set {port} master {BRIDGE} up",
        )
        _ip(
            holder,
            "link set lo up",
            f"addr add {self.address(name)}/24 dev {DEVICE}",
            f"link set {DEVICE} up",
        )

    def partition(self, name: str) -> None:
        """Pull the node's cable. Connections are not closed: they fall silent."""
        _ip(self._switch, f"link set p{self._ports[name]} down")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        _ip(self._switch, f"link set p{self._ports[name]} up")

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing that one node sends reaches the other, who still reaches it; twice for both ways."""
        peer = self.address(receiver)
        _ip(self._nodes[sender], f"neigh replace {peer} lladdr {NOBODY} dev {DEVICE} nud permanent")

    def mend(self, sender: str, receiver: str) -> None:
        """Undo `cut`."""
        _ip(self._nodes[sender], f"neigh del {self.address(receiver)} dev {DEVICE}")

    def disk(self, name: str, directory: Path, size: str) -> None:
        """Give the node a disk of its own at a directory, which holds nothing yet. See it below `root`."""
        directory.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(directory)]
        _do([*self.within(name), *mount])

    def limit_inodes(self, name: str, directory: Path, most: int) -> None:
        """Let that disk have so many files, at least those it has. 0: any number."""
        remount = ["mount", "-o", f"remount,nr_inodes={most}", str(directory)]
        _do([*self.within(name), *remount])

    def close(self) -> None:
        for holder in (*self._nodes.values(), self._switch):
            holder.close()


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    """A switch and these nodes; needs root, so mark the test `root` and `netns`."""
    with contextlib.ExitStack() as stack:
        made = Network(_hold("--net"))
        stack.callback(made.close)
        _ip(
            made._switch,
            "link set lo up",
            f"link add {BRIDGE} type bridge",
            f"addr add {SUBNET}.{CONTROLLER}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )
        for name in names:
            made.add(name)
        yield made


def _hold(*kinds: str) -> Holder:
    """New namespaces of these kinds, private to what enters them."""
    # The parent-death signal outlives both execs: a test that is killed leaves no namespace.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "--", "sleep", "infinity"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    holder = Holder(process)
    try:
        wait_until(lambda: process.poll() is not None or _name(process.pid) == "sleep", COMMAND_S)
        assert process.poll() is None, f"unshare {' '.join(kinds)} ended at once"
    except BaseException:
        holder.close()
        raise
    return holder


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _ip(where: Holder, *lines: str) -> None:
    _do([*where.entering(mounts=False), "ip", "-batch", "-"], "\n".join(lines) + "\n")


def _do(command: Sequence[str], text: str = "") -> None:
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, f"{' '.join(command)} < {text!r}: {done.stderr.strip()}"
