"""Puts the parts of a daemon together and takes them apart again, in order."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio

from agentd import __version__
from agentd.api.errors import JournalUnavailable
from agentd.api.targets import Target
from agentd.config import Config
from agentd.core.retention import Policy
from agentd.daemon.advertise import AdvertisedAddress
from agentd.daemon.clock import ClockKeeper
from agentd.daemon.exits import StateDirUnusable
from agentd.daemon.handover import Handover
from agentd.daemon.health import HealthKeeper
from agentd.daemon.node import NodeReporter
from agentd.daemon.rendezvous import NodeRendezvous
from agentd.daemon.resources import ResourceWatch
from agentd.groups import history
from agentd.groups.archive import Archive
from agentd.groups.conditions import Conditions
from agentd.groups.drain import Drainage
from agentd.groups.journal import DAMAGED, Former, Journal
from agentd.groups.layout import DATABASE
from agentd.groups.logcap import LogCap
from agentd.groups.logs import LogReader
from agentd.groups.registry import Registry
from agentd.groups.retention import Retention
from agentd.hub.hub import Hub
from agentd.procs.identity import boot_id
from agentd.quickdata import dataclass
from agentd.rpc.agent import AgentServicer
from agentd.rpc.health import HealthServicer
from agentd.rpc.health_book import HealthBook
from agentd.rpc.rendezvous import RendezvousServicer
from agentd.rpc.server import add_services
from agentd.rpc.streams import OpenStreams


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon's life needs of them."""

    journal: Journal
    registry: Registry
    hub: Hub
    health: HealthKeeper
    streams: OpenStreams
    advertised_address: str


@asynccontextmanager
async def opened(
    config: Config, bound: Sequence[Target], server: grpc.aio.Server, hand_over: Callable[[], object]
) -> AsyncIterator[Parts]:
    """Everything behind the server, with its services added to it. Raises `StartFailed`.

    `hand_over` is called when a caller asks for it.
    """
    async with AsyncExitStack() as stack:
        journal = await _journal(config, stack)
        advertised = AdvertisedAddress(config.advertise_addr, bound)
        hub = Hub(config.node_id, journal, address=advertised.default, serving=False)
        conditions = Conditions()
        archive = Archive(Path(config.state_dir, DATABASE), config.node_id)
        stack.callback(archive.close)
        registry = Registry(
            node_id=config.node_id,
            state_dir=config.state_dir,
            journal=journal,
            rendezvous=NodeRendezvous(hub, agent_uid=journal.agent_uid, daemon_starts=journal.daemon_starts),
            advertise=advertised.for_hub,
            host_mode=config.host_mode.value,
            conditions=conditions,
            archive=archive,
        )
        clock = ClockKeeper(journal, conditions)
        watch = ResourceWatch(config.state_dir, conditions, clock)
        await watch.step()
        watching = asyncio.create_task(watch.keep())
        stack.push_async_callback(_cancelled, watching)
        await registry.start()
        stack.push_async_callback(registry.close)
        logs = LogReader(registry, config.node_id)
        stack.push_async_callback(logs.close)
        streams, book = OpenStreams(), HealthBook(registry)
        registry.on_change(book.run_changed)
        node = NodeReporter(
            registry,
            node_id=config.node_id,
            agent_uid=journal.agent_uid,
            state_dir=config.state_dir,
            listening=bound,
            advertised_address=advertised.default,
        )
        handover = Handover(config.node_id, config.host_mode, hand_over)
        health = HealthKeeper(book, registry)
        drainage = Drainage(config.node_id, registry, journal, health.refresh)
        drainage.start()
        stack.push_async_callback(drainage.close)
        add_services(
            server,
            agent=AgentServicer(registry, logs, node, archive, handover, drainage, streams),
            rendezvous=RendezvousServicer(hub),
            health=HealthServicer(book, streams, config.node_id),
        )
        policy = Policy(age=config.retention.age, size=config.retention.size)
        retention = asyncio.create_task(Retention(config.state_dir, policy, registry, clock.now).keep())
        stack.push_async_callback(_cancelled, retention)
        capping = asyncio.create_task(LogCap(config.state_dir, config.logs.cap, registry).keep())
        stack.push_async_callback(_cancelled, capping)
        keeping = asyncio.create_task(health.keep())
        stack.push_async_callback(_cancelled, keeping)
        yield Parts(journal, registry, hub, health, streams, advertised.default)


async def _journal(config: Config, stack: AsyncExitStack) -> Journal:
    journal = Journal(Path(config.state_dir, DATABASE))
    try:
        await journal.start()
    except JournalUnavailable as error:
        raise StateDirUnusable(config.state_dir, error.facts["problem"]) from None
    stack.push_async_callback(journal.close)
    former = former_end(journal.former, boot_id())
    journal.post(
        history.agentd_started(
            version=__version__, pid=os.getpid(), starts=journal.daemon_starts, former=former, now=time.time()
        )
    )
    if DAMAGED in journal.problems:
        journal.post(history.journal_damaged(journal.problems[DAMAGED], time.time()))
    return journal


def former_end(former: Former | None, boot: str) -> str:
    """How the agentd before this one ended, by what it left in the journal."""
    if former is None:
        return ""
    if former.said_goodbye:
        return "the one before it ended in order"
    if former.boot_id not in ("", boot):
        return "the machine went down under the one before it"
    return "the one before it was killed or crashed"


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
