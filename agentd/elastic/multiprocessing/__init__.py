"""Worker processes: start, logs, failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentd.elastic.multiprocessing.api import (
    LogsDest,
    LogsSpecs,
    PContext,
    RoundLogsSpecs,
    RunProcsResult,
    SignalException,
    Std,
    SubprocessContext,
    to_map,
)
from agentd.elastic.multiprocessing.errors import ProcessFailure

__all__ = [
    "LogsDest",
    "LogsSpecs",
    "PContext",
    "ProcessFailure",
    "RoundLogsSpecs",
    "RunProcsResult",
    "SignalException",
    "Std",
    "SubprocessContext",
    "start_processes",
    "to_map",
]


def start_processes(
    name: str,
    entrypoint: str,
    args: Mapping[int, tuple[Any, ...]],
    envs: dict[int, dict[str, str]],
    logs_specs: LogsSpecs,
) -> PContext:
    """Start a program once for each local rank. What was started is closed again if that raises."""
    context = SubprocessContext(name, entrypoint, args, envs, logs_specs)
    try:
        context.start()
    except BaseException:
        context.close()
        raise
    return context
