"""Groups of worker processes under torch's names, and the exception a signal becomes."""

from __future__ import annotations

import signal

from agentd.elastic.multiprocessing.context import PContext, RunProcsResult
from agentd.elastic.multiprocessing.logs import LogsDest, LogsSpecs, RoundLogsSpecs, Std, to_map
from agentd.elastic.multiprocessing.subprocess_context import SubprocessContext

__all__ = [
    "LogsDest",
    "LogsSpecs",
    "PContext",
    "RoundLogsSpecs",
    "RunProcsResult",
    "SignalException",
    "Std",
    "SubprocessContext",
    "to_map",
]


class SignalException(Exception):
    """This process got a signal that stops its agent."""

    def __init__(self, msg: str, sigval: signal.Signals) -> None:
        super().__init__(msg)
        self.sigval = sigval
