"""Agents and the values they speak in, under torch's names."""

from agentd.elastic.agent.server.api import (
    ElasticAgent,
    RunResult,
    SimpleElasticAgent,
    StopRequested,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)

__all__ = [
    "ElasticAgent",
    "RunResult",
    "SimpleElasticAgent",
    "StopRequested",
    "Worker",
    "WorkerGroup",
    "WorkerSpec",
    "WorkerState",
]
