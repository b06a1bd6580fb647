"""The elastic library: torch's elastic agent without torch.

`torch.distributed.elastic.X` is `agentd.elastic.X`; the main names are here too. Importing this loads neither
torch nor gRPC, and each name is imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from agentd.elastic.late import found_late

if TYPE_CHECKING:
    from agentd.elastic.agent.server import (
        ElasticAgent,
        LocalElasticAgent,
        RunResult,
        SimpleElasticAgent,
        StopRequested,
        Worker,
        WorkerGroup,
        WorkerSpec,
        WorkerState,
    )
    from agentd.elastic.current_round import StaleRoundError, assert_current_round
    from agentd.elastic.multiprocessing import (
        DefaultLogsSpecs,
        LogsSpecs,
        PContext,
        RoundLogsSpecs,
        RunProcsResult,
        SignalException,
        Std,
        start_processes,
    )
    from agentd.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
    from agentd.elastic.rendezvous import (
        RendezvousHandler,
        RendezvousInfo,
        RendezvousParameters,
        RendezvousStoreInfo,
    )
    from agentd.elastic.rendezvous.registry import get_rendezvous_handler

__all__ = [
    "ChildFailedError",
    "DefaultLogsSpecs",
    "ElasticAgent",
    "LocalElasticAgent",
    "LogsSpecs",
    "PContext",
    "ProcessFailure",
    "RendezvousHandler",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStoreInfo",
    "RoundLogsSpecs",
    "RunProcsResult",
    "RunResult",
    "SignalException",
    "SimpleElasticAgent",
    "StaleRoundError",
    "Std",
    "StopRequested",
    "Worker",
    "WorkerGroup",
    "WorkerSpec",
    "WorkerState",
    "assert_current_round",
    "get_rendezvous_handler",
    "record",
    "start_processes",
]

if not TYPE_CHECKING:
    # The lightest first.
    _HOMES = (
        "current_round",
        "multiprocessing.errors",
        "rendezvous",
        "rendezvous.registry",
        "multiprocessing",
        "agent.server",
    )
    __getattr__ = found_late(__name__, __all__, _HOMES)
