"""Worker processes that run a program."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from agentd.elastic.multiprocessing.context import PContext
from agentd.elastic.multiprocessing.logs import LogsSpecs
from agentd.elastic.multiprocessing.owner import Args, Envs, GroupOwner, Launch
from agentd.procs.crew import Leader
from agentd.procs.spawn import Order, spawn_all

if TYPE_CHECKING:
    from agentd.elastic.numa import OptionsLike
    from agentd.procs.zygote.forked import Blank

__all__ = ["SubprocessContext"]


class SubprocessContext(PContext):
    """Programs, started with the arguments made strings (torch's).

    A program that cannot be started raises `agentd.procs.spawn.SpawnError`, an `OSError`, from `start`.
    """

    def __init__(
        self,
        name: str,
        entrypoint: str,
        args: Args,
        envs: Envs,
        logs_specs: LogsSpecs,
        log_line_prefixes: Mapping[int, str] | None = None,
        numa_options: OptionsLike | None = None,
        duplicate_stdout_filters: Sequence[str] | None = None,
        duplicate_stderr_filters: Sequence[str] | None = None,
        *,
        owner: GroupOwner | None = None,
    ) -> None:
        super().__init__(
            name,
            entrypoint,
            args,
            envs,
            logs_specs,
            log_line_prefixes,
            duplicate_stdout_filters,
            duplicate_stderr_filters,
            numa_options=numa_options,
            owner=owner,
        )
        self._program = entrypoint
        self._blanks: list[Blank] | None = None
        """Forked processes that wait to become workers, once they were asked for."""

    def _launch(self, launch: Launch) -> Leader:
        (leader,) = self._launch_all([launch])
        return leader

    def _launch_all(self, launches: Sequence[Launch]) -> Generator[Leader, None, None]:
        forks = self._owner.forks
        if forks is None:
            yield from spawn_all([self._order(launch) for launch in launches])
            return
        if self._blanks is None:
            self._blanks = forks.take(self.nprocs)
        from agentd.procs.zygote.forked import start_all

        yield from start_all(self._blanks, [(self._order(launch), launch.cpus) for launch in launches])

    def _order(self, launch: Launch) -> Order:
        return Order(
            argv=[self._program, *map(str, self.args[launch.local_rank])],
            env=launch.env,
            cwd=launch.cwd,
            stdout_fd=launch.stdout_fd,
            stderr_fd=launch.stderr_fd,
        )
