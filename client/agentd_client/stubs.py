"""Calls made on a channel, blocking or asyncio: the two kinds of channel are asked in the same words."""

from __future__ import annotations

from typing import Any

from agentd.api.errors import AgentError
from agentd.api.errwire import from_rpc_error
from agentd_client.plan import Call


def unary(channel: Any, call: Call[Any]) -> Any:
    """What makes the call for its one answer."""
    return channel.unary_unary(
        call.method.path,
        request_serializer=type(call.request).SerializeToString,
        response_deserializer=call.method.decode,
    )


def stream(channel: Any, call: Call[Any]) -> Any:
    """What makes the call for its stream of answers."""
    return channel.unary_stream(
        call.method.path,
        request_serializer=type(call.request).SerializeToString,
        response_deserializer=call.method.decode,
    )


def error_of(failure: Any, call: Call[Any]) -> AgentError:
    """The error that gRPC's own one stands for."""
    return from_rpc_error(failure, call.target, timeout=call.timeout_s or 0.0, method=call.method.name)
