"""A command that stays with a run to its end, and what Ctrl-C, SIGTERM and a lost terminal mean for it."""

from __future__ import annotations

import asyncio
import enum
import signal
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final

from agentctl import caller, exits
from agentctl.show.display import Display
from agentctl.show.talk import say
from agentd.api.errors import AgentError, RunEnded, RunNotFound
from agentd.api.types import LogsRequest, Phase
from agentd_client.aio import AsyncRunHandle
from agentd_client.report import RunOver, RunReport

_TICK_S: Final = 0.25
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class OnInterrupt(enum.Enum):
    """Whose run it is."""

    STOP = enum.auto()
    """Ours: the first signal stops it with its grace, the second at once, the third only leaves."""
    LEAVE = enum.auto()
    """Somebody's: we go, it goes on."""


class Attached:
    """One attached command. Used once."""

    def __init__(
        self,
        display: Display,
        *,
        on_interrupt: OnInterrupt,
        survives_hangup: bool = False,
        keeps_lease: bool = False,
        logs: LogsRequest | None = None,
    ) -> None:
        """`survives_hangup`: the run would end with us, so a lost terminal does not end us.
        `keeps_lease`: it has a controller lease, which is ours to renew.
        """
        self._display = display
        self._on_interrupt = on_interrupt
        self._survives_hangup = survives_hangup
        self._keeps_lease = keeps_lease
        self._logs = logs
        self._handle: AsyncRunHandle | None = None
        self._signals: list[int] = []
        self._leaving: asyncio.Future[int] | None = None
        self._stops: set[asyncio.Task[None]] = set()

    async def stay(self, starting: Awaitable[AsyncRunHandle]) -> int:
        """Stay with the run that `starting` gives. The exit code."""
        loop = asyncio.get_running_loop()
        self._leaving = loop.create_future()
        for signum in (*_STOP_SIGNALS, signal.SIGHUP):
            loop.add_signal_handler(signum, self._signalled, signum)
        work = loop.create_task(self._follow(starting))
        ticks = loop.create_task(self._tick())
        try:
            awaited: set[asyncio.Future[Any]] = {work, self._leaving}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            return self._code(work.result()) if work.done() else self._leaving.result()
        finally:
            tasks = (work, ticks, *self._stops)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for signum in (*_STOP_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(signum)

    async def _follow(self, starting: Awaitable[AsyncRunHandle]) -> RunReport:
        self._handle = await starting
        if self._signals:
            self._stop(at_once=False)
        async with AsyncExitStack() as stack:
            if self._keeps_lease:
                await self._keep_lease(self._handle, stack)
            events = await stack.enter_async_context(aclosing(self._handle.follow(logs=self._logs)))
            async for event in events:
                if isinstance(event, RunOver):
                    self._display.end(event.report)
                    return event.report
                self._display.show(event)
        raise AssertionError("a followed run ends with its report")

    async def _keep_lease(self, handle: AsyncRunHandle, stack: AsyncExitStack) -> None:
        try:
            await stack.enter_async_context(handle.keep_lease())
        except (RunEnded, RunNotFound):
            pass  # it was short; what is followed tells its end
        except AgentError as error:
            say(f"nobody will stop run {handle.run_id} when it is left alone: {error}")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._display.tick(time.monotonic())

    def _signalled(self, signum: int) -> None:
        if signum == signal.SIGHUP:
            if not self._survives_hangup:
                self._leave(128 + signum)
            return
        self._signals.append(signum)
        if self._on_interrupt is OnInterrupt.LEAVE:
            if self._handle is not None:
                run_id = self._handle.run_id
                say(f"run {run_id} goes on; `agentctl attach` comes back, `agentctl stop` ends it")
            self._leave(128 + signum)
        elif len(self._signals) > 2 or (self._handle is None and len(self._signals) > 1):
            say("leaving; what was asked of the nodes is still being done")
            self._leave(128 + signum)
        elif self._handle is None:
            say("the run is just being started; it is stopped as soon as that is done. Again: leave it")
        else:
            self._stop(at_once=len(self._signals) > 1)

    def _stop(self, *, at_once: bool) -> None:
        say(
            "stopping the run at once. Again: leave"
            if at_once
            else "stopping the run with its grace. Again: at once"
        )
        task = asyncio.get_running_loop().create_task(self._ask_to_stop(0.0 if at_once else None))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _ask_to_stop(self, grace: float | None) -> None:
        assert self._handle is not None
        try:
            await self._handle.stop(grace=grace, reason=f"{_name(self._signals)} of {caller.name()}")
        except AgentError as error:
            say(f"the run could not be told to stop: {error}")

    def _leave(self, code: int) -> None:
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(code)

    def _code(self, report: RunReport) -> int:
        if self._signals and report.status.phase is Phase.STOPPED:
            return 128 + self._signals[0]
        return exits.of_run(report.status)


def _name(signals: list[int]) -> str:
    return "Ctrl-C" if signals and signals[-1] == signal.SIGINT else "SIGTERM"
