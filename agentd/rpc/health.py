"""grpc.health.v1.Health: Check, Watch and List over the health book."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio

from agentd.api.errors import LimitExceeded, RunNotFound
from agentd.rpc import health_messages as pb
from agentd.rpc.health_book import RUN_PREFIX, Health, HealthBook
from agentd.rpc.streams import OpenStreams, paced

LIST_LIMIT: Final = 1000
"""Names in one answer of List."""

_SERVICE_UNKNOWN: Final = 3


class HealthServicer:
    """How health is asked and streamed."""

    def __init__(self, book: HealthBook, streams: OpenStreams, node_id: str) -> None:
        self._book = book
        self._streams = streams
        self._node_id = node_id

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        health = self._book.check(request.service)
        if health is not None:
            return pb.CheckResponse(status=health.value)
        if request.service.startswith(RUN_PREFIX):
            raise RunNotFound(request.service.removeprefix(RUN_PREFIX), self._node_id)
        return await context.abort(
            grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here; List tells the names"
        )

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        shown = None
        changes = self._book.watch(request.service)
        with self._streams.open() as ending:
            async with aclosing(paced(changes, ending, silence=None)) as healths:
                async for health in healths:
                    if not isinstance(health, Health | None):
                        return
                    status = _SERVICE_UNKNOWN if health is None else health.value
                    if status != shown:
                        shown = status
                        yield pb.CheckResponse(status=status)

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        names = self._book.names()
        if len(names) > LIST_LIMIT:
            raise LimitExceeded(f"a list of {len(names)} names", f"{LIST_LIMIT}; use Check or Watch by name")
        known = {name: self._book.check(name) for name in names}
        return pb.ListResponse(
            statuses={
                name: pb.CheckResponse(status=health.value)
                for name, health in known.items()
                if isinstance(health, Health)
            }
        )


def add_health(servicer: HealthServicer, server: grpc.aio.Server) -> None:
    """Serve it."""
    handlers: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(
            servicer.Check,
            request_deserializer=pb.CheckRequest.FromString,
            response_serializer=pb.CheckResponse.SerializeToString,
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(
            servicer.Watch,
            request_deserializer=pb.CheckRequest.FromString,
            response_serializer=pb.CheckResponse.SerializeToString,
        ),
        "List": grpc.unary_unary_rpc_method_handler(
            servicer.List,
            request_deserializer=pb.ListRequest.FromString,
            response_serializer=pb.ListResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.SERVICE, handlers),))
