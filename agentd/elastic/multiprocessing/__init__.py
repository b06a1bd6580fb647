"""Worker processes: start, logs, failures."""

from agentd.elastic.multiprocessing.api import (
    ArgumentNotPicklable,
    DefaultLogsSpecs,
    FunctionNotLoadable,
    GroupOwner,
    LogsDest,
    LogsSpecs,
    MultiprocessContext,
    PContext,
    ReturnValueNotPicklable,
    RoundLogsSpecs,
    RunProcsResult,
    SignalException,
    Std,
    SubprocessContext,
    create_context,
    start_processes,
    to_map,
)
from agentd.elastic.multiprocessing.errors import ProcessFailure

__all__ = [
    "ArgumentNotPicklable",
    "DefaultLogsSpecs",
    "FunctionNotLoadable",
    "GroupOwner",
    "LogsDest",
    "LogsSpecs",
    "MultiprocessContext",
    "PContext",
    "ProcessFailure",
    "ReturnValueNotPicklable",
    "RoundLogsSpecs",
    "RunProcsResult",
    "SignalException",
    "Std",
    "SubprocessContext",
    "create_context",
    "start_processes",
    "to_map",
]
