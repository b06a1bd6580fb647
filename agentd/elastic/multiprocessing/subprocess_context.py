"""Worker processes that run a program."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from agentd.elastic.multiprocessing.context import PContext, RunProcsResult
from agentd.elastic.multiprocessing.errors import ProcessFailure
from agentd.elastic.multiprocessing.logs import LogsSpecs, opened_log
from agentd.procs.crew import Crew, UnkillableWorkers
from agentd.procs.exits import ExitInfo
from agentd.procs.spawn import Child
from agentd.procs.waiter import Waiter

FOREIGN_TERM_PATIENCE_S = 0.2
"""How long a worker's death by a SIGTERM that is not ours waits for this process to get one, too."""


class SubprocessContext(PContext):
    """Programs, each in a session of its own that is ended with it.

    Besides torch's methods there are some that do not wait, for an owner with a `Waiter`: `stop`, `poll` and
    `failed`, which change their answers only in waits of that waiter.
    """

    def __init__(
        self,
        name: str,
        entrypoint: str,
        args: Mapping[int, tuple[Any, ...]],
        envs: dict[int, dict[str, str]],
        logs_specs: LogsSpecs,
        *,
        waiter: Waiter | None = None,
        base_env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        token: str = "",
        cgroup: str = "",
        owns_descendants: bool = False,
        on_exit: Callable[[int, ExitInfo, bool], object] | None = None,
    ) -> None:
        """`envs` go over `base_env`, this process' own environment by default.

        `on_exit(local_rank, exit, torn_down)` is called from inside a wait. `owns_descendants`: everything
        that descends from this process belongs to the workers; for processes that do nothing else.
        """
        super().__init__(name, entrypoint, args, envs, logs_specs, waiter=waiter)
        self._program = entrypoint
        self._base_env = os.environ if base_env is None else base_env
        self._cwd = cwd
        self._on_exit = on_exit
        self._failures: dict[int, ProcessFailure] = {}
        self._verdict_given = False
        ancestors = (os.getpid(),) if owns_descendants else ()
        self._crew = Crew(self._waiter, self._exited, token=token, cgroup=cgroup, ancestors=ancestors)
        self._waiter.add_pump(self._patience_pump)

    @property
    def children(self) -> Mapping[int, Child]:
        """The processes by local rank."""
        return self._crew.children

    def pids(self) -> dict[int, int]:
        return {local_rank: child.pid for local_rank, child in self._crew.children.items()}

    @property
    def failures(self) -> Mapping[int, ProcessFailure]:
        """By local rank, those that failed by themselves, also if that is still in doubt."""
        return dict(self._failures)

    def poll(self) -> RunProcsResult | None:
        """The result once all have ended and are swept, or some have failed; `None` before.

        Raises `UnkillableWorkers` when some cannot be ended.
        """
        if self._crew.stuck:
            self._verdict_given = True
            raise UnkillableWorkers(self._crew.stuck)
        if self.failed():
            return self._result({}, dict(self._failures))
        if self._failures or not self._crew.gone:
            return None
        good = [rank for rank in self._crew.exits if self._crew.exits[rank].ok]
        return self._result(dict.fromkeys(good), {})

    def failed(self) -> bool:
        """Whether a worker has failed by itself, beyond doubt."""
        if not self._failures:
            return False
        ends = self._patience_ends()
        return ends is None or time.monotonic() >= ends

    def stop(self, signum: int, deadline: float) -> None:
        """Stop all without waiting: `signum`, then SIGKILL at the monotonic `deadline`. Again shortens it."""
        self._crew.stop(signum, deadline)

    def send_signal(self, signum: int, local_ranks: Collection[int]) -> tuple[int, ...]:
        """Signal these workers' process groups; answers those that ran."""
        return self._crew.send_signal(signum, local_ranks)

    def _start(self) -> None:
        for local_rank in range(self.nprocs):
            self._start_one(local_rank)
            # Many starts take their time: what else waits is served between them.
            self._waiter.wait(time.monotonic())
        self._crew.complete()

    def _start_one(self, local_rank: int) -> None:
        with opened_log(self.stdouts[local_rank]) as stdout, opened_log(self.stderrs[local_rank]) as stderr:
            self._crew.start(
                local_rank,
                [self._program, *map(str, self.args[local_rank])],
                env={**self._base_env, **self.envs[local_rank]},
                cwd=self._cwd,
                stdout_fd=stdout,
                stderr_fd=stderr,
            )

    def _close(self, death_sig: signal.Signals, timeout: float) -> None:
        if not self._crew.settled:
            self._crew.stop(death_sig, time.monotonic() + timeout)
            self._waiter.wait_until(lambda: self._crew.settled, None)
        self._waiter.remove_pump(self._patience_pump)
        self._crew.close()
        if self._crew.stuck and not self._verdict_given:
            self._verdict_given = True
            raise UnkillableWorkers(self._crew.stuck)

    def _result(self, values: dict[int, Any], failures: dict[int, ProcessFailure]) -> RunProcsResult:
        return RunProcsResult(values, failures, self.stdouts, self.stderrs)

    def _exited(self, local_rank: int, info: ExitInfo) -> None:
        torn_down = local_rank in self._crew.torn_down
        if not info.ok and not torn_down:
            self._failures[local_rank] = ProcessFailure(
                local_rank,
                self._crew.children[local_rank].pid,
                info.returncode,
                self.error_files[local_rank],
                stderr_file=self.stderrs[local_rank],
                exited_at=info.time,
            )
        if self._on_exit is not None:
            self._on_exit(local_rank, info, torn_down)

    def _patience_ends(self) -> float | None:
        """When a doubt whether this was a failure or a stop of the whole node ends; `None` without one."""
        exits = [self._crew.exits[rank] for rank in self._failures]
        if not exits or not all(_by_sigterm(info) for info in exits):
            return None
        return min(info.at for info in exits) + FOREIGN_TERM_PATIENCE_S

    def _patience_pump(self, now: float) -> float | None:
        ends = self._patience_ends()
        return ends if ends is not None and ends > now else None


def _by_sigterm(info: ExitInfo) -> bool:
    return info.signal == signal.SIGTERM or info.exit_code == 128 + signal.SIGTERM
