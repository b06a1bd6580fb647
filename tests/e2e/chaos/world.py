"""The fleet of the storm: agentds in namespaces, on disks of their own, that can be ended and begun again."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentd.api.errors import AgentError
from agentd.api.types import DrainMode
from agentd_client.aio import AsyncAgentClient
from tests.e2e.chaos.observe import Look, Observer
from tests.support.fleet import BIN
from tests.support.netns import Network, network

CALL_S = 2.0
START_S = 40.0
STOP_S = 60.0
CATCH_UP_S = 4.0
"""A journal has written what waited so long after its disk is well."""
DISK = "20m"
RETENTION = "8MiB"
PORT = 7460


@dataclass(frozen=True)
class Wished:
    """What its operator wants of a node."""

    mode: DrainMode | None = None
    """None: that it takes runs."""
    deadline: float | None = None


Limit = Callable[[int], contextlib.AbstractContextManager[None]]
"""Keeps a process from something."""


@dataclass
class Place:
    """A node: its agentd of now, and what ails it."""

    name: str
    address: str
    socket: Path
    state: Path
    """The state directory, as the node sees it."""
    seen_state: Path
    """The same directory from here."""
    log: Path
    client: AsyncAgentClient
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    frozen: bool = False
    unplugged: bool = False
    cut_from: set[str] = field(default_factory=set)
    disk_ailments: set[int] = field(default_factory=set)
    disk_bad_until: float = 0.0
    """Until then the journal may lack what was announced."""
    no_inodes: bool = False
    limits: list[Limit] = field(default_factory=list)
    """What its agentd may do no more."""
    forgot: bool = False
    """Its agentd was killed while that was so."""
    ailments: set[int] = field(default_factory=set)
    """Numbers of the faults that keep it from its work, or from others."""
    wished: Wished = Wished()
    wish_known: bool = True
    """Its agentd has answered that wish, and cannot have forgotten it."""
    empty_since: float | None = None
    """It has to leave its runs from then on."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    well_since: float | None = None
    fresh: Sequence[str] = ()
    """What its agentd had open when it began."""

    @property
    def up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def fall_ill(self, number: int) -> None:
        self.ailments.add(number)
        self.well_since = None

    def get_well(self, number: int) -> None:
        self.ailments.discard(number)

    def disk_ails(self, number: int) -> None:
        self.disk_ailments.add(number)
        self.disk_bad_until = math.inf

    def disk_is_well(self, number: int) -> None:
        self.disk_ailments.discard(number)
        if not self.disk_ailments:
            self.disk_bad_until = time.monotonic() + CATCH_UP_S

    def may_forget(self) -> None:
        """Its agentd ends, before what it announced is surely written."""
        if time.monotonic() < self.disk_bad_until:
            self.forgot, self.wish_known, self.empty_since = True, False, None

    def wish(self, wished: Wished) -> None:
        """Its operator wants something else."""
        self.wished, self.wish_known, self.empty_since = replace(wished), False, None

    async def tell_wish(self) -> None:
        """Have its agentd do what the operator wants, if it answers."""
        async with self.asking:
            wished, process = self.wished, self.process
            if self.wish_known or not self.up:
                return
            with contextlib.suppress(AgentError):
                if wished.mode is None:
                    await self.client.undrain()
                else:
                    await self.client.drain(mode=wished.mode, deadline=wished.deadline, reason="planned")
                if self.wished is wished and self.process is process and self.up:
                    self.wish_known = True
                    if wished.mode is DrainMode.MOVE or wished.deadline is not None:
                        self.empty_since = time.monotonic() + (wished.deadline or 0.0)

    def answered(self, now: float) -> None:
        """Its agentd serves; with nothing else the matter, the node is well from now on."""
        if self.well_since is None and not self.ailments and self.up:
            self.well_since = now

    def open_files(self) -> list[str]:
        """What its agentd holds open."""
        found: list[str] = []
        if self.process is not None:
            folder = f"/proc/{self.process.pid}/fd"
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    found.append(os.readlink(f"{folder}/{name}"))
        return found

    def files(self) -> list[str]:
        """Every file of the state directory, by its path in there."""
        return [
            str(path.relative_to(self.seen_state)) for path in self.seen_state.rglob("*") if path.is_file()
        ]


@dataclass
class World:
    """Everything a fault can reach."""

    net: Network
    root: Path
    places: dict[str, Place]
    observer: Observer
    look: Look
    note: Callable[[str], None]

    def see(self) -> Look:
        """Look anew."""
        self.look = self.observer.look(time.monotonic())
        return self.look

    def ill(self) -> int:
        """How many nodes something is the matter with, or have not answered since."""
        return sum(place.well_since is None for place in self.places.values())

    def launch(self, place: Place) -> None:
        """Begin the node's agentd; `ready` tells when it serves."""
        assert not place.up
        command = [
            *self.net.within(place.name),
            str(BIN / "agentd"),
            *("--listen", f"{place.address}:{PORT}", "--listen", f"unix:{place.socket}", "--insecure"),
            *("--advertise-addr", f"{place.address}:{PORT}"),
            *("--node-id", place.name, "--state-dir", str(place.state), "--retention-size", RETENTION),
        ]
        with place.log.open("ab") as output:
            place.process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=self.root
            )
        place.starts += 1

    async def ready(self, place: Place) -> None:
        """Return once the agentd of the node serves. Fails if it ends instead."""

        deadline = time.monotonic() + START_S
        while True:
            assert place.up, f"agentd of {place.name} ended at once; see {place.log}"
            with contextlib.suppress(AgentError):
                await place.client.get_node()
                return
            assert time.monotonic() < deadline, f"agentd of {place.name} does not serve; see {place.log}"
            await asyncio.sleep(0.05)

    async def end(self, place: Place) -> int:
        """SIGTERM, and its exit status."""
        assert place.process is not None
        place.process.terminate()
        return await asyncio.to_thread(place.process.wait, STOP_S)

    def kill(self, place: Place) -> None:
        """SIGKILL, and it is gone."""
        if place.process is not None:
            place.may_forget()
            place.process.kill()
            place.process.wait(STOP_S)


@contextlib.asynccontextmanager
async def world(root: Path, names: Sequence[str], note: Callable[[str], None]) -> AsyncIterator[World]:
    """A fleet with every agentd serving; at the end all of it is gone, however it stood."""
    with network(*names) as net:
        places = {name: _place(net, root, name) for name in names}
        links = {os.readlink(f"/proc/{net.holder(name)}/ns/net"): name for name in names}
        observer = Observer(links, ignored=map(net.holder, names))
        made = World(net, root, places, observer, observer.look(time.monotonic()), note)
        try:
            for place in places.values():
                made.launch(place)
            for place in places.values():
                await made.ready(place)
                place.answered(time.monotonic())
                place.fresh = place.open_files()
            yield made
        finally:
            await _end(made)


def _place(net: Network, root: Path, name: str) -> Place:
    home = root / name
    state = home / "state"
    net.disk(name, state, DISK)
    socket = home / "s"
    return Place(
        name=name,
        address=net.address(name),
        socket=socket,
        state=state,
        seen_state=net.root(name) / state.relative_to("/"),
        log=home / "agentd.log",
        client=AsyncAgentClient(f"unix:{socket}", timeout_s=CALL_S),
    )


async def _end(made: World) -> None:
    for place in made.places.values():
        await place.client.close()
        made.kill(place)
    # Whatever is left in the namespaces is ours: nothing else can be there.
    for _ in range(3):
        for seen in made.see().processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(seen.pid, signal.SIGKILL)
        await asyncio.sleep(0.05)


Undo = Callable[[], Awaitable[None]]
"""Ends a fault."""
