"""Groups of worker processes under torch's interface: started, watched, stopped and swept together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from agentd.elastic.multiprocessing.errors.failure import NOT_AVAILABLE, ProcessFailure
from agentd.elastic.multiprocessing.logs import LogsSpecs, opened_log
from agentd.elastic.multiprocessing.owner import Args, Envs, GroupOwner, Launch
from agentd.elastic.multiprocessing.signals import SignalException, handling, signals_to_handle
from agentd.procs.crew import Crew, Leader, UnkillableWorkers
from agentd.procs.exits import ExitInfo
from agentd.procs.oom import OomWatch
from agentd.procs.resources import OUT_OF_PROCESSES
from agentd.procs.tree import TOKEN_VARIABLE
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentd.elastic.multiprocessing.tails.console import ConsoleTails
    from agentd.elastic.numa import OptionsLike

__all__ = ["PContext", "RunProcsResult"]

log = logging.getLogger(__name__)

FOREIGN_TERM_PATIENCE_S = 0.2
"""How long a worker's death by a SIGTERM that is not ours waits for this process to get one, too."""
START_TOGETHER = 16
"""As many are started in one go: descriptors are held for each of them meanwhile."""
START_PATIENCE_S = 10.0
"""How long the kernel may refuse a worker's process until that is a failure."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
CLOSE_GRACE_S = 30.0
"""Between SIGTERM and SIGKILL, torch's."""


@dataclass
class RunProcsResult:
    """How a group ended; all maps are by local rank (torch's)."""

    return_values: dict[int, Any] = field(default_factory=dict)
    """Of functions; `None` for each program. Empty if any failed."""
    failures: dict[int, ProcessFailure] = field(default_factory=dict)
    """Those that failed by themselves, none that was stopped."""
    stdouts: dict[int, str] = field(default_factory=dict)
    """The files of their standard output; an empty path is the console."""
    stderrs: dict[int, str] = field(default_factory=dict)
    """The files of their standard error."""

    def is_failed(self) -> bool:
        """Whether any failed."""
        return bool(self.failures)


class PContext(ABC):
    """Processes with the local ranks 0 to n-1, each in a session of its own that is ended with it.

    `start`, `wait`, `close` and `pids` are torch's. `poll`, `failed` and `stop` never wait: they are for an
    owner with a `Waiter`, and change their answers only in waits of it.
    """

    def __init__(
        self,
        name: str,
        entrypoint: Callable[..., Any] | str,
        args: Args,
        envs: Envs,
        logs_specs: LogsSpecs,
        log_line_prefixes: Mapping[int, str] | None = None,
        duplicate_stdout_filters: Sequence[str] | None = None,
        duplicate_stderr_filters: Sequence[str] | None = None,
        *,
        numa_options: OptionsLike | None = None,
        owner: GroupOwner | None = None,
    ) -> None:
        """Raises `RuntimeError` unless `args` and `envs` have the local ranks from 0 on."""
        self.name = name
        """What the group is called in logs and line prefixes: the role."""
        self.entrypoint = entrypoint
        """The program or function that all of them run."""
        self.nprocs = len(args)
        """How many there are."""
        _require_ranks("args", args, self.nprocs)
        _require_ranks("envs", envs, self.nprocs)
        self.args = args
        self.envs = envs
        dest = logs_specs.reify(envs)
        self.stdouts = dest.stdouts
        """The files of their standard output; an empty path is the console."""
        self.stderrs = dest.stderrs
        """The files of their standard error."""
        self.error_files = dest.error_files
        """Where each reports why it failed."""
        self._tails: ConsoleTails | None = None
        if dest.tee_stdouts or dest.tee_stderrs or duplicate_stdout_filters or duplicate_stderr_filters:
            # Late: most groups copy nothing.
            from agentd.elastic.multiprocessing.tails.console import ConsoleTails

            self._tails = ConsoleTails(
                dest, log_line_prefixes, name, duplicate_stdout_filters, duplicate_stderr_filters
            )
        self._numa_options = numa_options
        self._owner = owner = owner or GroupOwner()
        self._started = False
        self._closed = False
        self._verdict_given = False
        self._failures: dict[int, ProcessFailure] = {}
        self._waiter = Waiter() if owner.waiter is None else owner.waiter
        ancestors = (os.getpid(),) if owner.owns_descendants else ()
        more = {} if owner.forks is None else {"spared": owner.forks.spares}
        self._crew = Crew(
            self._waiter, self._exited, token=owner.token, cgroup=owner.cgroup, ancestors=ancestors, **more
        )
        self._waiter.add_pump(self._patience_pump)
        self._oom = OomWatch(self._waiter)

    # --- torch's interface

    def start(self) -> None:
        """Start the processes. If that raises, the caller closes the context. Twice is a `ValueError`.

        A process that the kernel refuses for want of processes or memory is tried again for some seconds.
        """
        if self._started:
            raise ValueError(f"the processes of {self.name!r} were started already; make a new context")
        self._started = True
        together = START_TOGETHER if self._numa_options is None else 1
        for first in range(0, self.nprocs, together):
            self._start_patiently(deque(range(first, min(first + together, self.nprocs))))
            # Many starts take their time: what else waits is served between them.
            self._waiter.wait(self._waiter.now())
        self._crew.complete()
        # Last: a process that forks workers had better have no threads.
        if self._tails is not None:
            self._tails.start()

    def wait(self, timeout: float = -1, period: float = 1) -> RunProcsResult | None:
        """Wait for the result: 0 looks once, less waits for ever; `None` when time is up.

        After a failure the others are stopped first. `period` is torch's and not needed: ends are events.

        A context with a waiter of its own, on the main thread, raises `SignalException` when this process
        gets one of TORCHELASTIC_SIGNALS_TO_HANDLE meanwhile, and puts the former handlers back in any case.
        The workers still run then: `close` ends them. Raises `UnkillableWorkers` when some cannot be ended.
        """
        deadline = None if timeout < 0 else self._waiter.now() + timeout
        with self._raising_signals() as check:
            self._serve(self._waiter.now())
            while (result := self.poll()) is None:
                check()
                if deadline is not None and self._waiter.now() >= deadline:
                    return None
                self._serve(deadline)
            if not result.is_failed():
                return result
            self.stop(signal.SIGTERM, self._waiter.now() + CLOSE_GRACE_S)
            while not self._crew.settled:
                check()
                self._serve(None)
        self.close()
        return self._failed()

    def close(self, death_sig: signal.Signals | None = None, timeout: float = 30) -> None:
        """End what still runs: `death_sig` (SIGTERM), SIGKILL after `timeout`. Harmless when repeated.

        What the workers wrote is on the console, and everything they held here given back. Raises
        `UnkillableWorkers`, once, when even SIGKILL leaves some.
        """
        try:
            self._close(signal.SIGTERM if death_sig is None else death_sig, timeout)
        finally:
            # Not so if an exception of a signal handler cut it short: the next call goes on with it then.
            if self._crew.settled:
                self._give_back()

    def pids(self) -> dict[int, int]:
        """The processes by local rank."""
        return {local_rank: leader.pid for local_rank, leader in self._crew.children.items()}

    # --- for an owner with a waiter

    @property
    def children(self) -> Mapping[int, Leader]:
        """The processes by local rank."""
        return self._crew.children

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
            return self._failed()
        if self._failures or not self._crew.gone:
            return None
        good = [rank for rank, info in sorted(self._crew.exits.items()) if info.ok]
        values = {rank: self._value_of(rank) for rank in good}
        return RunProcsResult(values, {}, self.stdouts, self.stderrs)

    def failed(self) -> bool:
        """Whether a worker has failed by itself, beyond doubt."""
        if not self._failures:
            return False
        ends = self._patience_ends()
        return ends is None or self._closed or self._waiter.now() >= ends

    def stop(self, signum: int, deadline: float) -> None:
        """Stop all without waiting: `signum`, then SIGKILL at the monotonic `deadline`. Again shortens it."""
        self._crew.stop(signum, deadline)

    def send_signal(self, signum: int, local_ranks: Collection[int]) -> tuple[int, ...]:
        """Signal these workers' process groups; answers those that ran."""
        return self._crew.send_signal(signum, local_ranks)

    # --- what kinds of workers differ in

    @abstractmethod
    def _launch(self, launch: Launch) -> Leader:
        """Start this worker's process."""

    def _launch_all(self, launches: Sequence[Launch]) -> Generator[Leader, None, None]:
        """Start several, for those who can do it sooner together; each is given once it runs, in their order.

        The first that cannot be started raises, and what was not given by then is ended again.
        """
        for launch in launches:
            yield self._launch(launch)

    def _value_of(self, local_rank: int) -> Any:
        """What a worker that ended well returned."""
        return None

    def _problem_of(self, local_rank: int, info: ExitInfo) -> str:
        """Why a worker failed although its process ended with 0; empty if it did not."""
        return ""

    def _release(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what was held for the workers."""

    # --- within

    def _start_patiently(self, ranks: deque[int]) -> None:
        ends, pause = self._waiter.now() + START_PATIENCE_S, FIRST_PAUSE_S
        while ranks:
            before = len(ranks)
            try:
                self._start_some(ranks)
                continue
            except OSError as error:
                if len(ranks) < before:
                    continue
                if error.errno not in OUT_OF_PROCESSES or self._waiter.now() + pause > ends:
                    raise
                log.warning("%s %d cannot be started now: %s", self.name, ranks[0], error)
            again = self._waiter.now() + pause
            self._waiter.wait_until(lambda moment=again: self._waiter.now() >= moment, again)  # type: ignore[misc]
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _start_some(self, ranks: deque[int]) -> None:
        """Start as many of them as there are descriptors for; those that run are taken out."""
        with contextlib.ExitStack() as stack:
            launches: list[Launch] = []
            for local_rank in ranks:
                try:
                    launches.append(self._prepared(local_rank, stack))
                except OSError:
                    if not launches:
                        raise
                    break
            leaders = stack.enter_context(contextlib.closing(self._launch_all(launches)))
            for leader in leaders:
                self._crew.adopt(ranks.popleft(), leader)

    def _prepared(self, local_rank: int, stack: contextlib.ExitStack) -> Launch:
        base_env = os.environ if self._owner.base_env is None else self._owner.base_env
        env = {**base_env, **self.envs[local_rank]}
        if self._owner.token:
            env[TOKEN_VARIABLE] = self._owner.token
        return Launch(
            local_rank=local_rank,
            env=env,
            cwd=self._owner.cwd,
            stdout_fd=stack.enter_context(opened_log(self.stdouts.get(local_rank, ""))),
            stderr_fd=stack.enter_context(opened_log(self.stderrs.get(local_rank, ""))),
            cpus=stack.enter_context(self._bound(local_rank, env)),
        )

    def _bound(
        self, local_rank: int, env: Mapping[str, str]
    ) -> contextlib.AbstractContextManager[frozenset[int] | None]:
        if self._numa_options is None:
            return contextlib.nullcontext()
        from agentd.elastic.numa import bound

        return bound(self._numa_options, local_rank, env)

    def _close(self, death_sig: signal.Signals, timeout: float) -> None:
        if not self._crew.settled:
            self._crew.stop(death_sig, self._waiter.now() + timeout)
            self._waiter.wait_until(lambda: self._crew.settled, None)
        self._waiter.remove_pump(self._patience_pump)
        self._oom.close()
        self._crew.close()
        if self._crew.stuck and not self._verdict_given:
            self._verdict_given = True
            raise UnkillableWorkers(self._crew.stuck)

    def _give_back(self) -> None:
        self._closed = True
        self._release()
        if self._owner.waiter is None:
            self._waiter.close()
        if self._tails is not None:
            self._tails.stop()

    def _serve(self, deadline: float | None) -> None:
        if not self._closed:
            self._waiter.wait(deadline)

    @contextlib.contextmanager
    def _raising_signals(self) -> Iterator[Callable[[], None]]:
        """Gives what raises `SignalException` after a signal; at the end it is raised in any case."""
        got: list[int] = []

        def check() -> None:
            if got:
                raise SignalException.of(got[0])

        if self._owner.waiter is not None or self._closed:
            yield check
            return
        with self._waiter.woken_by_signals(), handling(signals_to_handle(), got.append):
            yield check
        check()

    def _failed(self) -> RunProcsResult:
        return RunProcsResult({}, dict(sorted(self._failures.items())), self.stdouts, self.stderrs)

    def _exited(self, local_rank: int, info: ExitInfo) -> None:
        torn_down = local_rank in self._crew.torn_down
        problem = self._problem_of(local_rank, info) if info.ok else ""
        if not torn_down and (problem or not info.ok):
            self._failures[local_rank] = self._failure_of(local_rank, info, problem)
        if self._owner.on_exit is not None:
            self._owner.on_exit(local_rank, info, torn_down)

    def _failure_of(self, local_rank: int, info: ExitInfo, problem: str) -> ProcessFailure:
        pid = self._crew.children[local_rank].pid
        failure = ProcessFailure(
            local_rank,
            pid,
            info.returncode,
            self.error_files.get(local_rank, NOT_AVAILABLE),
            stderr_file=self.stderrs.get(local_rank, ""),
            exited_at=info.time,
        )
        if failure.error_file == NOT_AVAILABLE:
            explained = self._owner.explain(pid) if self._owner.explain is not None else ""
            failure.message = explained or problem or failure.message
            if not explained and info.signal == signal.SIGKILL and (why := self._oom.explain(pid)):
                failure.message = f"{failure.message}: {why}"
        return failure

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


def _require_ranks(what: str, by_rank: Mapping[int, object], nprocs: int) -> None:
    expected = set(range(nprocs))
    if set(by_rank) != expected:
        raise RuntimeError(f"{what} must have the local ranks {sorted(expected)}, has {sorted(by_rank)}")
