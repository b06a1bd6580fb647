"""Every call passes here: what a handler raises becomes a status, and never more than it should tell.

An `AgentError` goes out as itself. Anything else is a fault of agentd: the caller gets an id, the log
gets the story under it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from agentd.api.errors import AgentError, InternalError, InvalidSpec
from agentd.api.errwire import to_status

log = logging.getLogger("agentd.rpc")

# Generic for the type checker only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class ErrorGuard(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._guarded: dict[str, tuple[Handler, Handler]] = {}
        """By method: its handler, and that as it is guarded."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = handler, self._guard(handler, method)
        return known[1]

    def _guard(self, handler: Any, method: str) -> Handler:
        kind = "stream" if handler.request_streaming else "unary"
        name = f"{kind}_{'stream' if handler.response_streaming else 'unary'}"
        wrap = self._streaming if handler.response_streaming else self._single
        make: Any = getattr(grpc, f"{name}_rpc_method_handler")
        wrapped: Handler = make(
            wrap(getattr(handler, name), method),
            request_deserializer=(_strict if handler.request_streaming else _tolerant)(
                handler.request_deserializer
            ),
            response_serializer=_once(handler.response_serializer),
        )
        return wrapped

    def _single(self, behavior: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            try:
                return await behavior(_decoded(request), context)
            except Exception as error:  # noqa: BLE001 (the last stop before the wire)
                await self._end(context, error, method)

        return call

    def _streaming(self, behavior: Callable[[Any, Context], Any], method: str) -> Any:
        async def call(request: Any, context: Context) -> None:
            try:
                # Closed here and now when the client vanishes, not whenever it is collected.
                async with aclosing(behavior(_decoded(request), context)) as answers:
                    async for answer in answers:
                        try:
                            await context.write(answer)
                        except grpc.aio.InternalError:
                            # Nobody is there any more to take it.
                            return
            except Exception as error:  # noqa: BLE001 (the last stop before the wire)
                await self._end(context, error, method)

        return call

    async def _end(self, context: Context, error: Exception, method: str) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, AgentError):
            error_id = secrets.token_hex(4)
            log.error("call failed", extra={"method": method, "error_id": error_id}, exc_info=error)
            error = InternalError(error_id, self._node_id)
        status = to_status(error)
        await context.abort(status.code, status.details, status.trailing_metadata)


def _once(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Encode what is sent to many streams, one after the other, for the first of them only."""
    last: tuple[Any, bytes] = (None, b"")

    def write(message: Any) -> bytes:
        nonlocal last
        if message is not last[0]:
            last = message, serialize(message)
        return last[1]

    return write


class _Undecodable:
    """Stands for bytes that are no message of the expected type."""


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Lets the handler's guard answer for bad bytes; gRPC alone would call them an internal error."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Undecodable()

    return read


def _strict(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The same for a stream, where bad bytes fail the handler that reads them."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise _no_message() from None

    return read


def _decoded(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise _no_message()
    return request


def _no_message() -> InvalidSpec:
    return InvalidSpec("message", "the bytes are not the message this call takes")
