"""Keepers of a controller lease: context managers that renew it while their block runs.

They renew three times in each lease, by a thread or a task of their own, and go on when nobody answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType

from agentd.api.errors import AgentError
from agentd.api.types import ControllerLease
from agentd_client.lease import Renewals


class _Keeper:
    def __init__(self, run_id: str) -> None:
        self._renewals = Renewals(run_id)

    @property
    def lease(self) -> ControllerLease | None:
        """As of the newest renewal; None before the first."""
        return self._renewals.lease

    @property
    def problem(self) -> AgentError | None:
        """Why the newest renewal failed; None if it did not. After `RunEnded` no other is tried."""
        return self._renewals.problem


class LeaseKeeper(_Keeper):
    """Renews by a thread. Entering it renews once, and raises what no other try would change."""

    def __init__(self, run_id: str, renew: Callable[[], ControllerLease]) -> None:
        super().__init__(run_id)
        self._renew = renew
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="agentd-client-lease", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._try()
        if self._renewals.over:
            assert self._renewals.problem is not None
            raise self._renewals.problem
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._thread.join()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return when there is nothing to keep any more: `problem` says why. False: not within this time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _keep(self) -> None:
        while not self._renewals.over and not self._leaving.wait(self._renewals.pause):
            self._try()

    def _try(self) -> None:
        try:
            self._renewals.renewed(self._renew())
        except AgentError as error:
            self._renewals.failed(error)


class AsyncLeaseKeeper(_Keeper):
    """Renews by a task. Entering it renews once, and raises what no other try would change."""

    def __init__(self, run_id: str, renew: Callable[[], Awaitable[ControllerLease]]) -> None:
        super().__init__(run_id)
        self._renew = renew
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncLeaseKeeper:
        await self._try()
        if self._renewals.over:
            assert self._renewals.problem is not None
            raise self._renewals.problem
        self._task = asyncio.get_running_loop().create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Return when there is nothing to keep any more: `problem` says why. False: not within this time."""
        assert self._task is not None, "enter it first"
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        return bool(done)

    async def _keep(self) -> None:
        while not self._renewals.over:
            await asyncio.sleep(self._renewals.pause)
            await self._try()

    async def _try(self) -> None:
        try:
            self._renewals.renewed(await self._renew())
        except AgentError as error:
            self._renewals.failed(error)


__all__ = ["AsyncLeaseKeeper", "LeaseKeeper"]
