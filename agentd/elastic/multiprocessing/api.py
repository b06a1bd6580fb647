"""Groups of worker processes under torch's names."""

from __future__ import annotations

from agentd.elastic.multiprocessing.context import PContext, RunProcsResult
from agentd.elastic.multiprocessing.functions.errors import (
    ArgumentNotPicklable,
    FunctionNotLoadable,
    ReturnValueNotPicklable,
)
from agentd.elastic.multiprocessing.logs import (
    DefaultLogsSpecs,
    LogsDest,
    LogsSpecs,
    RoundLogsSpecs,
    Std,
    to_map,
)
from agentd.elastic.multiprocessing.multiprocess_context import MultiprocessContext
from agentd.elastic.multiprocessing.owner import GroupOwner
from agentd.elastic.multiprocessing.signals import SignalException
from agentd.elastic.multiprocessing.starting import create_context, start_processes
from agentd.elastic.multiprocessing.subprocess_context import SubprocessContext

__all__ = [
    "ArgumentNotPicklable",
    "DefaultLogsSpecs",
    "FunctionNotLoadable",
    "GroupOwner",
    "LogsDest",
    "LogsSpecs",
    "MultiprocessContext",
    "PContext",
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
