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
from agentd.elastic.agent.server.local_elastic_agent import LocalElasticAgent

__all__ = [
    "ElasticAgent",
    "LocalElasticAgent",
    "RunResult",
    "SimpleElasticAgent",
    "StopRequested",
    "Worker",
    "WorkerGroup",
    "WorkerSpec",
    "WorkerState",
]
