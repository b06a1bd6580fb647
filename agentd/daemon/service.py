"""The daemon's life, told in order: claim, start, serve, shut down or hand over, exit."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import grpc.aio

from agentd import __version__
from agentd.api.errors import RunNotFound
from agentd.api.patience import within
from agentd.api.targets import Target
from agentd.api.types import StreamEnd, StreamEndCause
from agentd.config import Config
from agentd.config.model import HostMode
from agentd.daemon import announce, metrics, systemd
from agentd.daemon.eventlog import to_standard_error
from agentd.daemon.exits import ExitCode, ListenFailed, StartFailed
from agentd.daemon.parts import Parts, opened
from agentd.daemon.places import Places, claimed
from agentd.daemon.shortage import mute_shortages
from agentd.daemon.wishes import Wishes
from agentd.groups import history
from agentd.groups.registry import Registry
from agentd.quickdata import dataclass
from agentd.rpc.server import bind, make_server

log = logging.getLogger("agentd.daemon")

_LAST_CALLS: Final = 1.0
"""Seconds calls that are being answered have when everything else is over."""
_LAST_WORDS: Final = 2.0
"""Seconds the runs have to be shown as ended when their groups are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """How the process that started agentd holds on to it."""

    lifeline_fd: int | None = None
    """Read end of a pipe. When its writers are gone, agentd shuts down."""
    ready_fd: int | None = None
    """Gets one JSON line once agentd serves."""


def serve(config: Config, embedding: Embedding) -> ExitCode:
    """Be the agentd of this configuration until somebody ends it. Raises `StartFailed`."""
    with to_standard_error(config.log), claimed(config) as places:
        try:
            return asyncio.run(_Daemon(config, places, embedding).live())
        except StartFailed:
            raise
        except Exception:
            log.exception("agentd failed")
            return ExitCode.INTERNAL


class _Daemon:
    def __init__(self, config: Config, places: Places, embedding: Embedding) -> None:
        self._config = config
        self._places = places
        self._embedding = embedding
        self._wishes = Wishes(keeps_hosts=config.host_mode is HostMode.KEEP)

    async def live(self) -> ExitCode:
        mute_shortages(asyncio.get_running_loop())
        with self._wishes.heard(self._embedding.lifeline_fd):
            async with AsyncExitStack() as stack:
                server = make_server(self._config.node_id)
                stack.push_async_callback(server.stop, None)
                bound = self._bind(server)
                opening = opened(self._config, bound, server, self._wishes.ask_handover)
                parts = await stack.enter_async_context(opening)
                await server.start()
                # Not before: a short lease would be over before anybody could renew it.
                parts.hub.serve()
                # What is here by now stays: the collector need not look through it again and again.
                gc.freeze()
                parts.health.serving(True)
                told = metrics.served(self._config.metrics_listen, parts.registry, self._config.node_id)
                await stack.enter_async_context(told)
                await self._announce(parts, bound)
                reporting = asyncio.create_task(systemd.report(lambda: self._status_line(parts)))
                stack.callback(reporting.cancel)
                await self._wishes.leave.wait()
                code = await self._leave(parts)
                await server.stop(_LAST_CALLS)
                log.info("ended", extra={"exit": code.name})
                return code

    def _bind(self, server: grpc.aio.Server) -> tuple[Target, ...]:
        try:
            bound = bind(server, self._places.endpoints)
        except OSError as error:
            raise ListenFailed(", ".join(self._config.listen), str(error)) from None
        for target in bound:
            if target.is_unix:
                Path(target.path).chmod(0o600)
        return bound

    async def _announce(self, parts: Parts, bound: tuple[Target, ...]) -> None:
        for warning in self._places.warnings:
            log.warning(warning)
        facts = {
            "node_id": self._config.node_id,
            "pid": os.getpid(),
            "addresses": [str(target) for target in bound],
            "advertised_address": parts.advertised_address,
        }
        log.info("serving", extra={**facts, "state_dir": self._places.state_dir, "version": __version__})
        announce.print_addresses(bound)
        announce.notify_systemd("READY=1")
        if self._config.port_file:
            await asyncio.to_thread(announce.write_port_file, self._config.port_file, bound)
        if self._embedding.ready_fd is not None:
            announce.tell_starter(self._embedding.ready_fd, facts)

    def _status_line(self, parts: Parts) -> str:
        groups = parts.registry.group_refs()
        return systemd.status_line(
            groups=len(groups),
            runs=len({(group.run_id, group.incarnation) for group in groups}),
            conditions=parts.registry.conditions,
            leaving=self._wishes.reason,
        )

    async def _leave(self, parts: Parts) -> ExitCode:
        handing_over = self._wishes.hand_over
        log.info("handing over" if handing_over else "shutting down", extra={"reason": self._wishes.reason})
        announce.notify_systemd("STOPPING=1")
        parts.health.serving(False)
        if handing_over:
            # Whatever is asked of it now is asked again of the next one.
            parts.registry.ending = True
            code = ExitCode.OK
        else:
            code = await self._shut_down(parts)
        parts.journal.post(history.agentd_ended(pid=os.getpid(), reason=self._wishes.reason, now=time.time()))
        await parts.hub.close()
        parts.streams.close(_goodbye(self._config.node_id))
        return code

    async def _shut_down(self, parts: Parts) -> ExitCode:
        """In order; a second wish cuts it short."""
        stopping = asyncio.create_task(self._stop_groups(parts))
        at_once = asyncio.create_task(self._wishes.leave_now.wait())
        await asyncio.wait({stopping, at_once}, return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        code = ExitCode.OK
        if not stopping.done():
            code = ExitCode.FORCED
            stopping.cancel()
            await asyncio.wait({stopping})
            await parts.registry.stop_now()
        else:
            stopping.result()
        with suppress(asyncio.TimeoutError, RunNotFound):
            await within(_LAST_WORDS, _no_run_lives(parts.registry))
        return code

    async def _stop_groups(self, parts: Parts) -> None:
        stopping = asyncio.create_task(parts.registry.shut_down(self._config.shutdown.grace))
        try:
            # It refuses new runs from its first step on; only then callers are told to go elsewhere.
            await asyncio.sleep(0)
            # Streams that are opened from now on see the groups stop and end with the daemon.
            parts.streams.end(_goodbye(self._config.node_id))
            await stopping
        finally:
            stopping.cancel()


async def _no_run_lives(registry: Registry) -> None:
    """What a run's end was is known a moment after its groups have ended."""
    while live := registry.runs(include_ended=False):
        await registry.wait_change(live[0].run_id, live[0].incarnation, live[0].revision)


def _goodbye(node_id: str) -> StreamEnd:
    return StreamEnd(
        cause=StreamEndCause.AGENTD_ENDING,
        reason=f"agentd of node {node_id} goes away; try again in a moment",
    )
