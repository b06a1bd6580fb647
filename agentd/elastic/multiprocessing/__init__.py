"""Worker processes: start, logs, failures."""

from typing import TYPE_CHECKING

from agentd.elastic.late import found_late

if TYPE_CHECKING:
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

if not TYPE_CHECKING:
    # Scripts that report their errors need no more of this.
    __getattr__ = found_late(__name__, __all__, ("errors", "api"))
