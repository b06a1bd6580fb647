"""Worker processes that call a function, and what it returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentd.elastic.multiprocessing.context import PContext
from agentd.elastic.multiprocessing.logs import LogsSpecs
from agentd.elastic.multiprocessing.owner import Args, Envs, GroupOwner, Launch
from agentd.procs.crew import Leader
from agentd.procs.exits import ExitInfo

if TYPE_CHECKING:
    from agentd.elastic.multiprocessing.functions.channel import ValueChannel
    from agentd.elastic.numa import OptionsLike

__all__ = ["MultiprocessContext"]

START_METHODS = ("spawn", "fork", "forkserver")


class MultiprocessContext(PContext):
    """Functions, called under `record` in processes of the standard library's `multiprocessing` (torch's).

    Arguments and values may be of any size, and hold what that library can send: queues, locks, shared
    tensors. A function or argument that cannot be sent raises `ArgumentNotPicklable` from `start`. A value
    that cannot be, a function that is missing in the worker, or an end with status 0 without a value (by
    `os._exit`, say) is a failure of that worker which says so; `sys.exit(0)` returns `None`.
    """

    def __init__(
        self,
        name: str,
        entrypoint: Callable[..., Any],
        args: Args,
        envs: Envs,
        start_method: str,
        logs_specs: LogsSpecs,
        log_line_prefixes: Mapping[int, str] | None = None,
        numa_options: OptionsLike | None = None,
        duplicate_stdout_filters: Sequence[str] | None = None,
        duplicate_stderr_filters: Sequence[str] | None = None,
        *,
        owner: GroupOwner | None = None,
    ) -> None:
        """`start_method` is `spawn`, `fork` or `forkserver`; another one is a `ValueError`."""
        if start_method not in START_METHODS:
            raise ValueError(f"start_method must be one of {', '.join(START_METHODS)}, not {start_method!r}")
        if owner is not None and owner.owns_descendants:
            raise ValueError(
                "owns_descendants is for programs: the processes that multiprocessing starts beside workers "
                "descend from this one, too, and would be ended with them"
            )
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
        self.start_method = start_method
        """How workers are made: `spawn`, `fork` or `forkserver`."""
        self._function = entrypoint
        self._channels: dict[int, ValueChannel] = {}

    def _launch(self, launch: Launch) -> Leader:
        # Late: multiprocessing takes memory and time that an agent of programs can do without.
        from agentd.elastic.multiprocessing.functions.channel import ValueChannel
        from agentd.elastic.multiprocessing.functions.start import FunctionStart

        channel = self._channels[launch.local_rank] = ValueChannel(self._waiter)
        start = FunctionStart(
            method=self.start_method,
            name=f"{self.name}{launch.local_rank}",
            function=self._function,
            args=self.args[launch.local_rank],
            launch=launch,
        )
        return start.run(channel, self._waiter.descriptors())

    def _value_of(self, local_rank: int) -> Any:
        return self._channels[local_rank].value

    def _problem_of(self, local_rank: int, info: ExitInfo) -> str:
        channel = self._channels[local_rank]
        # It has ended: what it sent is all here.
        channel.drain()
        if not channel.arrived:
            return (
                f"local rank {local_rank} ended with exit code 0 before its function returned a value: "
                "something in it ended the process, os._exit for example"
            )
        if channel.problem:
            return (
                f"local rank {local_rank} returned a value that cannot be loaded here: {channel.problem}. "
                "Return plain data, or write it to a file and return its path."
            )
        return ""

    def _release(self) -> None:
        for channel in self._channels.values():
            channel.close()
