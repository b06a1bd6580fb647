"""How a group of workers is made: programs or functions, by what the entrypoint is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentd.elastic.multiprocessing.context import PContext
from agentd.elastic.multiprocessing.logs import LogsSpecs
from agentd.elastic.multiprocessing.multiprocess_context import MultiprocessContext
from agentd.elastic.multiprocessing.owner import Args, Envs, GroupOwner
from agentd.elastic.multiprocessing.subprocess_context import SubprocessContext

if TYPE_CHECKING:
    from agentd.elastic.numa import OptionsLike

__all__ = ["create_context", "start_processes"]


def start_processes(
    name: str,
    entrypoint: Callable[..., Any] | str,
    args: Args,
    envs: Envs,
    logs_specs: LogsSpecs,
    log_line_prefixes: Mapping[int, str] | None = None,
    start_method: str = "spawn",
    numa_options: OptionsLike | None = None,
    duplicate_stdout_filters: Sequence[str] | None = None,
    duplicate_stderr_filters: Sequence[str] | None = None,
) -> PContext:
    """Start a program (a `str`), or call a function, once for each local rank (torch's).

    `args` and `envs` have the local ranks from 0 on as keys, else that is a `RuntimeError`. Prefixes are for
    lines that are tee'd to this process' console; with filters, lines that contain one of them go to a file
    that all ranks share, too. `start_method` is for functions: `spawn`, `fork` or `forkserver`. What was
    started is ended again if anything raises: `SpawnError` for a program, `ArgumentNotPicklable` for what
    cannot be sent.
    """
    context = create_context(
        name,
        entrypoint,
        args,
        envs,
        logs_specs,
        log_line_prefixes,
        start_method,
        numa_options,
        duplicate_stdout_filters,
        duplicate_stderr_filters,
        # A daemon that leaves its worker's session is found by that.
        owner=GroupOwner(token=os.urandom(16).hex()),
    )
    try:
        context.start()
    except BaseException:
        context.close()
        raise
    return context


def create_context(
    name: str,
    entrypoint: Callable[..., Any] | str,
    args: Args,
    envs: Envs,
    logs_specs: LogsSpecs,
    log_line_prefixes: Mapping[int, str] | None = None,
    start_method: str = "spawn",
    numa_options: OptionsLike | None = None,
    duplicate_stdout_filters: Sequence[str] | None = None,
    duplicate_stderr_filters: Sequence[str] | None = None,
    *,
    owner: GroupOwner | None = None,
) -> PContext:
    """What `start_processes` starts, not started: for an `owner` with a `Waiter`."""
    logging = (log_line_prefixes, numa_options, duplicate_stdout_filters, duplicate_stderr_filters)
    if isinstance(entrypoint, str):
        return SubprocessContext(name, entrypoint, args, envs, logs_specs, *logging, owner=owner)
    return MultiprocessContext(name, entrypoint, args, envs, start_method, logs_specs, *logging, owner=owner)
