"""Server reflection: lets grpcurl and buf curl call agentd without its protos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

SERVICE: Final = "grpc.reflection.v1alpha.ServerReflection"


def add_reflection(server: grpc.aio.Server) -> None:
    """Show every service."""
    server.add_generic_rpc_handlers((_Reflection(),))


class _Reflection(grpc.GenericRpcHandler):
    """Most agentds are never asked, and all of them start: what it needs is loaded for the first who asks."""

    def __init__(self) -> None:
        self._loaded: Callable[[Any], Any] | None = None

    def service(self, handler_call_details: Any) -> Any:
        """gRPC's hook."""
        if not handler_call_details.method.startswith(f"/{SERVICE}/"):
            return None
        if self._loaded is None:
            self._loaded = _handlers().service
        return self._loaded(handler_call_details)


def _handlers() -> grpc.GenericRpcHandler:
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    from agentd.rpc import health_messages
    from agentd.rpc.health_book import AGENT, RENDEZVOUS

    names = (AGENT, RENDEZVOUS, health_messages.SERVICE, SERVICE)
    servicer = reflection.aio.ReflectionServicer(names, pool=_pool(reflection_pb2))
    info = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"ServerReflectionInfo": info})


def _pool(reflection: Any) -> Any:
    """A pool of its own, because the default one may hold an older health.proto."""
    from google.protobuf import descriptor_pool

    from agentd.rpc import health_messages
    from agentd.v1 import agent_service_pb2, errors_pb2, rendezvous_service_pb2

    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for module in (agent_service_pb2, rendezvous_service_pb2, errors_pb2, reflection):
        _add(pool, module.DESCRIPTOR, added)
    pool.Add(health_messages.FILE)
    return pool


def _add(pool: Any, file: Any, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added)
    pool.AddSerializedFile(file.serialized_pb)
