"""A hub and nodes whose workers are made of numbers: they start, stop and succeed as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from agentd.api.errors import AgentError, HubUnreachable, Unreachable
from agentd.api.types import (
    Command,
    ControllerLease,
    Failure,
    Phase,
    RendezvousSpec,
    RoleSpec,
    RunSpec,
    RunStatus,
)
from agentd.core.contact import Contact
from agentd.hub.hub import Described, Hub
from agentd.hub.links import HubLink, HubStream, LocalHubLink
from agentd.hub.member import MemberSession, NodeIdentity
from agentd.hub.messages import Assignment, RunFinished, SessionHello
from agentd.hub.state import HubRecord

RUN = "run"
INCARNATION = 7


def make_spec(
    *nodes: str,
    fewest: int = 0,
    most: int = 0,
    max_restarts: int = 0,
    heartbeat: float | None = None,
    lease: float | None = None,
    join_timeout: float | None = None,
) -> RunSpec:
    return RunSpec(
        run_id=RUN,
        roles=(RoleSpec(command=Command(entrypoint="train.py")),),
        nodes=nodes,
        rendezvous=RendezvousSpec(
            min_members=fewest,
            max_members=most,
            heartbeat=heartbeat,
            lease=lease,
            join_timeout=join_timeout,
        ),
        max_restarts=max_restarts,
    )


class MemoryJournal:
    """Keeps the records. `delay` and `broken` make it a bad one."""

    def __init__(self) -> None:
        self.records: list[HubRecord] = []
        self.delay = 0.0
        self.broken = False

    async def hub_announced(self, run_id: str, incarnation: int, record: HubRecord, patience: float) -> None:
        if self.broken:
            raise OSError("no space left on device")
        if self.delay:
            await asyncio.sleep(self.delay)
        self.records.append(record)


class CuttableLink:
    """A link whose streams can be cut by the test."""

    def __init__(self, link: HubLink) -> None:
        self._link = link
        self.up = True
        self.stranger: AgentError | None = None
        """What answers while the hub is down, if anything does."""
        self.streams: list[HubStream] = []

    @property
    def address(self) -> str:
        return self._link.address

    async def connect(self, hello: SessionHello) -> HubStream:
        if not self.up:
            raise self.stranger or Unreachable(self.address, "cut by the test")
        stream = await self._link.connect(hello)
        self.streams.append(stream)
        return stream

    def lead_to(self, link: HubLink) -> None:
        """From here on to another hub."""
        self._link, self.up = link, True

    async def cut(self) -> None:
        """Break the streams, and let no other begin."""
        self.up = False
        for stream in self.streams:
            await stream.close()
        self.streams.clear()

    async def describe(self, run_id: str, incarnation: int = 0) -> Described:
        return await self._link.describe(run_id, incarnation)

    async def terminate(self, run_id: str, incarnation: int, grace: float | None, reason: str) -> RunStatus:
        return await self._link.terminate(run_id, incarnation, grace, reason)

    async def renew_lease(self, run_id: str, incarnation: int) -> ControllerLease:
        return await self._link.renew_lease(run_id, incarnation)


class Node:
    """One node with one member. Its workers stop at once unless `slow_stop` says how long they take."""

    def __init__(self, name: str, link: CuttableLink, *, hub_timeout: float = 600.0, uid: str = "") -> None:
        self.name = name
        self.link = link
        self.log: list[str] = []
        self.assignments: list[Assignment] = []
        self.running = 0
        self.slow_stop = 0.0
        self.finished: RunFinished | None = None
        self.view: RunStatus | None = None
        self.spec: RunSpec | None = None
        self.error: AgentError | None = None
        self.problem = ""
        """With the hub, as it was told last."""
        self.contact: Contact | None = None
        self._port = 20_000
        self._epoch = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.session = MemberSession(
            run_id=RUN,
            incarnation=INCARNATION,
            identity=NodeIdentity(
                node_id=name, agent_uid=uid or f"uid-{name}", address=f"{name}.example:7460"
            ),
            link=link,
            listener=self,
            next_epoch=self._next_epoch,
            hub_timeout=hub_timeout,
        )

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def start(self) -> Node:
        self.session.start()
        self.offer()
        return self

    def offer(self) -> None:
        self._port += 1
        heard = self.assignments[-1].round if self.assignments else 0
        self.session.ready("default", 2, self._port, heard)

    # --- the listener -----------------------------------------------------------------------------------

    def on_welcome(self, spec: RunSpec) -> None:
        self.spec = spec
        self.log.append("welcome")

    def on_assignment(self, role: str, assignment: Assignment) -> None:
        assert not self.running, "the old round still runs here"
        self.running = assignment.round
        self.assignments.append(assignment)
        self.log.append(f"round {assignment.round}")

    def on_stop_round(self, round_: int, reason: str) -> None:
        self.log.append(f"stop {round_}")
        self._later(self._stop(round_))

    def on_waiting(self, role: str, reason: str) -> None:
        self.log.append("waiting")

    def on_finished(self, finished: RunFinished) -> None:
        self.finished = finished
        self.log.append(f"finished {finished.phase}")
        if self.running:
            self._later(self._stop(self.running))

    def on_view(self, status: RunStatus) -> None:
        self.view = status

    def on_contact(self, contact: Contact) -> None:
        self.contact = contact

    def on_hub_lost(self, problem: str, since: float) -> None:
        self.problem = problem
        self.log.append("hub lost")

    def on_hub_found(self) -> None:
        self.log.append("hub found")

    def on_hub_timeout(self, error: HubUnreachable) -> None:
        self.error = error
        self.log.append("hub timeout")

    def on_refused(self, error: AgentError) -> None:
        self.error = error
        self.log.append("refused")

    def _later(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self, round_: int) -> None:
        await asyncio.sleep(self.slow_stop)
        self.running = 0
        self._port += 1
        self.session.gone("default", round_, 0 if self.finished else self._port)

    # --- what the test does -----------------------------------------------------------------------------

    def fail(self, age: float = 0.0, rank: int = 0) -> None:
        self.session.failed("default", self.running, [(Failure(rank=rank, exit_code=1), age)])

    def succeed(self) -> None:
        round_, self.running = self.running, 0
        self.session.done("default", round_)

    async def leave(self) -> None:
        """Leave, stop the workers, close."""
        self.session.leave("default", "asked to")
        await asyncio.sleep(self.slow_stop)
        round_, self.running = self.running, 0
        if round_:
            self.session.gone("default", round_, 0)
        await self.session.close()

    async def crash(self) -> None:
        """The node is gone without a word; its workers with it."""
        self.running = 0
        await self.link.cut()
        await self.close()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.session.close()

    @property
    def last(self) -> Assignment:
        return self.assignments[-1]


async def until(claim: Callable[[], object], within: float = 30.0) -> None:
    """Wait until the claim holds, looking often; fail after `within` seconds of the loop's clock."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not claim():
        assert loop.time() < deadline, "it did not come to hold in time"
        await asyncio.sleep(0.01)


class Stage:
    """A hub in this process with its nodes; closes them all at the end."""

    def __init__(self, spec: RunSpec, *, make_link: Callable[[Hub], HubLink] = LocalHubLink) -> None:
        self.journal = MemoryJournal()
        self.hub = Hub("hub", self.journal, address="hub.example:7460")
        self.spec = spec
        self.make_link = make_link
        self.nodes: dict[str, Node] = {}

    async def __aenter__(self) -> Stage:
        self.hub.create(self.spec, INCARNATION)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            await node.close()
        await self.hub.close()

    async def begin_hub_again(self, record: HubRecord) -> None:
        """The hub's agentd is killed, and the next one has this record."""
        for node in self.nodes.values():
            await node.link.cut()
        await self.hub.close()
        self.hub = Hub("hub", self.journal, address="hub.example:7460")
        self.hub.create(self.spec, INCARNATION, record)
        for node in self.nodes.values():
            node.link.lead_to(self.make_link(self.hub))

    def link(self) -> CuttableLink:
        return CuttableLink(self.make_link(self.hub))

    def add(self, *names: str, hub_timeout: float = 600.0) -> list[Node]:
        nodes = [Node(name, self.link(), hub_timeout=hub_timeout) for name in names]
        self.nodes.update((node.name, node) for node in nodes)
        return [node.start() for node in nodes]

    async def phase_is(self, phase: Phase, within: float = 30.0) -> None:
        await until(lambda: self.status.phase is phase, within)

    async def round_is(self, number: int, *nodes: Node, within: float = 30.0) -> None:
        await until(lambda: all(node.running == number for node in nodes), within)

    @property
    def status(self) -> RunStatus:
        return self.hub.describe(RUN).status
