"""Server reflection: lets grpcurl and buf curl call agentd without its protos."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from agentd.rpc import health_messages
from agentd.rpc.health_book import AGENT, RENDEZVOUS
from agentd.v1 import agent_service_pb2, errors_pb2, rendezvous_service_pb2


def add_reflection(server: grpc.aio.Server) -> None:
    """Show every service."""
    names = (AGENT, RENDEZVOUS, health_messages.SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=_pool())


def _pool() -> descriptor_pool.DescriptorPool:
    """A pool of its own, because the default one may hold an older health.proto."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for module in (agent_service_pb2, rendezvous_service_pb2, errors_pb2, reflection_pb2):
        _add(pool, module.DESCRIPTOR, added)
    pool.Add(health_messages.FILE)
    return pool


def _add(pool: descriptor_pool.DescriptorPool, file: Any, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added)
    pool.AddSerializedFile(file.serialized_pb)
