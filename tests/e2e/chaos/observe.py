"""What is seen of the fleet from outside: its processes, by /proc, and what its workers wrote down.

A process belongs to a node if it is in the node's network namespace. So nothing that a node started is
missed, whatever its environment says, and nothing else is ever taken for it.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from agentd.host.stock import IN_STOCK
from tests.support import leaks

BYSTANDER = "CHAOS_BYSTANDER"
"""Set for a process on a node that belongs to nobody there."""
YOUNG_S = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Role(enum.Enum):
    """What a process is there for."""

    AGENTD = "agentd"
    HOST = "host"
    WORKER = "worker"
    STOCK = "host in stock"
    """Its agentd's own, until it becomes some run's host."""
    ZYGOTE = "zygote"
    """What a host forks its workers from, or such a fork that is no worker yet."""
    OTHER = "other"
    """Not yet what it will be, or none of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A process that was alive at one look."""

    pid: int
    start_time: int
    node: str
    role: Role
    leads: bool = False
    """The worker itself, not a child of it."""
    run_id: str = ""
    incarnation: int = 0
    round: int = 0
    rank: int = -1
    round_file: str = ""
    """Where its node's file system has it."""

    def __str__(self) -> str:
        what = f"{self.role.value} {self.pid} on {self.node}"
        if self.role is Role.WORKER:
            what += f" of {self.run_id}/{self.incarnation}, round {self.round}, rank {self.rank}"
        return what


class Look(NamedTuple):
    """All processes of the nodes at one time."""

    at: float
    processes: Mapping[int, Seen]

    def workers(self) -> list[Seen]:
        return [seen for seen in self.processes.values() if seen.role is Role.WORKER]

    def of(self, role: Role, node: str) -> list[Seen]:
        """In an order that stays."""
        found = [seen for seen in self.processes.values() if seen.role is role and seen.node == node]
        return sorted(found, key=lambda seen: (seen.run_id, seen.rank, seen.start_time, seen.pid))


class Observer:
    """Looks at /proc again and again; what a process is, is found out once."""

    def __init__(self, namespaces: Mapping[str, str], ignored: Iterable[int] = ()) -> None:
        """`namespaces`: the node by the link of its network namespace. `ignored`: pids of the rig itself."""
        self._namespaces = namespaces
        self._ignored = frozenset(ignored)
        self._known: dict[tuple[int, int], Seen | None] = {}

    def look(self, at: float) -> Look:
        """Everything that is alive now: a zombie is not."""
        alive: dict[int, Seen] = {}
        known: dict[tuple[int, int], Seen | None] = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) in self._ignored:
                continue
            with contextlib.suppress(OSError, ValueError):
                pid = int(name)
                fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
                key = pid, int(fields[19])
                seen = self._known[key] if key in self._known else self._identified(*key, fields)
                if _settled(seen, key[1]):
                    known[key] = seen
                if seen is not None and fields[0] not in "ZX":
                    alive[pid] = seen
        self._known = known
        return Look(at, alive)

    def _identified(self, pid: int, start_time: int, fields: list[str]) -> Seen | None:
        """None: a stranger. A zombie of which nothing can be read any more is one too."""
        node = self._namespaces.get(os.readlink(f"/proc/{pid}/ns/net"))
        if node is None:
            return None
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        found = Seen(pid=pid, start_time=start_time, node=node, role=Role.OTHER)
        environ = _environ(pid)
        if BYSTANDER in environ:
            return None
        if "AGENTD_ROUND" in environ:
            return _worker(found, environ, leads=int(fields[3]) == pid)
        if Path(f"/proc/{pid}/comm").read_text() == "agentd-zygote\n":
            return replace(found, role=Role.ZYGOTE)
        if IN_STOCK in command:
            return replace(found, role=Role.STOCK)
        if "agentd.host" in command:
            place = command.index("agentd.host")
            run_id, incarnation = command[place + 3], int(command[place + 4])
            return Seen(
                pid=pid,
                start_time=start_time,
                node=node,
                role=Role.HOST,
                run_id=run_id,
                incarnation=incarnation,
            )
        if "--state-dir" in command and any(part.endswith("/agentd") for part in command[:2]):
            return Seen(pid=pid, start_time=start_time, node=node, role=Role.AGENTD)
        return found


def _settled(seen: Seen | None, start_time: int) -> bool:
    """Whether a process is what it will be: a young stranger may be on its way into a node."""
    if seen is not None:
        return seen.role not in (Role.OTHER, Role.STOCK, Role.ZYGOTE)
    return boottime() - start_time / _TICKS > YOUNG_S


def _environ(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(part.split("=", 1) for part in text.split("\0") if "=" in part)


def _worker(seen: Seen, environ: Mapping[str, str], *, leads: bool) -> Seen:
    incarnation = environ.get("AGENTD_ROUND_FILE", "").split("/")[-3:-2]
    return Seen(
        pid=seen.pid,
        start_time=seen.start_time,
        node=seen.node,
        role=Role.WORKER,
        leads=leads,
        run_id=environ.get("AGENTD_RUN_ID", ""),
        incarnation=int(incarnation[0]) if incarnation else 0,
        round=int(environ["AGENTD_ROUND"]),
        rank=int(environ.get("RANK", "-1")),
        round_file=environ.get("AGENTD_ROUND_FILE", ""),
    )


class Acting(NamedTuple):
    """A round that has workers on a node, who may write now where others write too."""

    node: str
    run_id: str
    incarnation: int
    round: int


def acting(look: Look) -> set[Acting]:
    """What the round files allow, asked as workers ask them."""
    found: set[Acting] = set()
    for seen in look.workers():
        about = Acting(seen.node, seen.run_id, seen.incarnation, seen.round)
        if about not in found and seen.leads and _may_act(seen):
            found.add(about)
    return found


def _may_act(seen: Seen) -> bool:
    try:
        told = json.loads(Path(f"/proc/{seen.pid}/root{seen.round_file}").read_text())
    except (OSError, ValueError):
        return False
    mine = told["round"] == seen.round and told["incarnation"] == seen.incarnation
    return mine and bool(told["valid_until"] > boottime())


def boottime() -> float:
    """The clock of round files."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # noqa: TID251


def send(seen: Seen, signum: int) -> bool:
    """Signal exactly this process. False: it is gone."""
    try:
        pidfd = os.pidfd_open(seen.pid)
    except OSError:
        return False
    try:
        if leaks.identify(seen.pid).start_time != seen.start_time:
            return False
        signal.pidfd_send_signal(pidfd, signum)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)


class Witness(NamedTuple):
    """A line that a worker wrote."""

    event: str
    """`began` or `done`."""
    round: int
    rank: int
    world_size: int
    restart_count: int
    max_restarts: int
    node: str
    master: str
    pid: int
    role: str
    role_rank: int
    role_world_size: int


def witnesses(file: Path) -> list[Witness]:
    """What the workers of a run wrote, in order. The last line may be half there."""
    if not file.exists():
        return []
    lines = (line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n"))
    found = []
    for event, round_, rank, world_size, count, most, node, master, pid, role, own, size in lines:
        numbers = (int(round_), int(rank), int(world_size), int(count), int(most))
        found.append(Witness(event, *numbers, node, master, int(pid), role, int(own), int(size)))
    return found
