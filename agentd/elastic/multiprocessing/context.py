"""A group of worker processes under torch's interface."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentd.elastic.multiprocessing.errors import ProcessFailure
from agentd.elastic.multiprocessing.logs import LogsSpecs
from agentd.procs.waiter import Waiter


@dataclass
class RunProcsResult:
    """How a group ended; all maps are by local rank."""

    return_values: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, ProcessFailure] = field(default_factory=dict)
    """Those that failed by themselves, none that was stopped."""
    stdouts: dict[int, str] = field(default_factory=dict)
    stderrs: dict[int, str] = field(default_factory=dict)

    def is_failed(self) -> bool:
        """Whether any failed."""
        return bool(self.failures)


class PContext(ABC):
    """Processes with the local ranks 0 to n-1, started, watched and closed together."""

    def __init__(
        self,
        name: str,
        entrypoint: Callable[..., Any] | str,
        args: Mapping[int, tuple[Any, ...]],
        envs: dict[int, dict[str, str]],
        logs_specs: LogsSpecs,
        *,
        waiter: Waiter | None = None,
    ) -> None:
        self.name = name
        self.entrypoint = entrypoint
        self.nprocs = len(args)
        _require_ranks("args", args, self.nprocs)
        _require_ranks("envs", envs, self.nprocs)
        self.args = args
        self.envs = envs
        dest = logs_specs.reify(envs)
        self.stdouts = dest.stdouts
        self.stderrs = dest.stderrs
        self.error_files = dest.error_files
        self._closed = False
        self._own_waiter = waiter is None
        self._waiter = Waiter() if waiter is None else waiter

    def start(self) -> None:
        """Start the processes. If that raises, the caller closes the context."""
        self._start()

    def wait(self, timeout: float = -1, period: float = 1) -> RunProcsResult | None:
        """Wait for the result: 0 looks once, less waits for ever; `None` when time is up.

        After a failure the others are stopped first. `period` is torch's and not needed: ends are events.
        """
        deadline = None if timeout < 0 else time.monotonic() + timeout
        if not self._closed:
            self._waiter.wait(time.monotonic())
        while (result := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            self._waiter.wait(deadline)
        if result.is_failed():
            self.close()
        return result

    def close(self, death_sig: signal.Signals | None = None, timeout: float = 30) -> None:
        """End what still runs: `death_sig` (SIGTERM), SIGKILL after `timeout`. Harmless when repeated.

        Raises `UnkillableWorkers`, once, when even that leaves some.
        """
        try:
            self._close(signal.SIGTERM if death_sig is None else death_sig, timeout)
        finally:
            self._closed = True
            if self._own_waiter:
                self._waiter.close()

    @abstractmethod
    def pids(self) -> dict[int, int]:
        """The processes by local rank."""

    @abstractmethod
    def poll(self) -> RunProcsResult | None:
        """The result if there is one already. Never waits."""

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _close(self, death_sig: signal.Signals, timeout: float) -> None: ...


def _require_ranks(what: str, by_rank: Mapping[int, object], nprocs: int) -> None:
    expected = set(range(nprocs))
    if set(by_rank) != expected:
        raise RuntimeError(f"{what} must have the local ranks {sorted(expected)}, has {sorted(by_rank)}")
