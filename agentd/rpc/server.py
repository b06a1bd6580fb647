"""Builds the one gRPC server: every service, the guard around them, and the addresses it serves on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio

from agentd.api.channel import SERVER_OPTIONS
from agentd.api.targets import Target
from agentd.rpc.agent import AgentServicer
from agentd.rpc.guard import ErrorGuard
from agentd.rpc.health import HealthServicer, add_health
from agentd.rpc.reflection import add_reflection
from agentd.rpc.rendezvous import RendezvousServicer
from agentd.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from agentd.v1.rendezvous_service_pb2_grpc import add_RendezvousServiceServicer_to_server


def make_server(node_id: str) -> grpc.aio.Server:
    """A server of nothing yet. Needs the running loop."""
    return grpc.aio.server(options=SERVER_OPTIONS, interceptors=(ErrorGuard(node_id),))


def add_services(
    server: grpc.aio.Server, *, agent: AgentServicer, rendezvous: RendezvousServicer, health: HealthServicer
) -> None:
    """Everything that agentd serves, and what tells about it."""
    # The stubs are typed for both kinds of server and fit neither by the letter.
    any_server: Any = server
    add_AgentServiceServicer_to_server(agent, any_server)
    add_RendezvousServiceServicer_to_server(rendezvous, any_server)
    add_health(health, server)
    add_reflection(server)


def bind(server: grpc.aio.Server, endpoints: Sequence[Target]) -> tuple[Target, ...]:
    """Bind numeric endpoints and tell what they became: port 0 is a free one by then.

    Raises `OSError` naming the endpoint that could not be bound.
    """
    bound: list[Target] = []
    for endpoint in endpoints:
        try:
            port = server.add_insecure_port(str(endpoint))
        except RuntimeError as error:
            raise OSError(f"{endpoint}: {error}") from None
        if not port:
            raise OSError(f"{endpoint}: gRPC could not bind it")
        bound.append(endpoint if endpoint.is_unix else Target(host=endpoint.host, port=port))
    return tuple(bound)
