"""The elastic library: torch's elastic agent without torch.

`torch.distributed.elastic.X` is `agentd.elastic.X`; the main names are here too.
"""

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
from agentd.elastic.multiprocessing import ProcessFailure, RoundLogsSpecs, SignalException
from agentd.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

__all__ = [
    "ElasticAgent",
    "LocalElasticAgent",
    "ProcessFailure",
    "RendezvousHandler",
    "RendezvousInfo",
    "RendezvousStoreInfo",
    "RoundLogsSpecs",
    "RunResult",
    "SignalException",
    "SimpleElasticAgent",
    "StopRequested",
    "Worker",
    "WorkerGroup",
    "WorkerSpec",
    "WorkerState",
]
