"""`agentctl health`: grpc.health.v1 Check, with the flags and exit codes of grpc_health_probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentctl import caller, flags
from agentctl.exits import HealthExit
from agentctl.options import CONTEXT, Parsed
from agentctl.show.talk import say

if TYPE_CHECKING:
    import grpc

_SECONDS = Parsed(flags.parse_seconds, "SECONDS")


@click.command(context_settings=CONTEXT)
@click.argument("address", metavar="[ADDR]", required=False)
@click.option("--addr", metavar="ADDR", help="The same as the argument.")
@click.option(
    "--service",
    default="",
    metavar="NAME",
    help="'agentd.v1.AgentService', 'agentd.run/RUN', ... Default: agentd.",
)
@click.option("--connect-timeout", type=_SECONDS, default=1.0, show_default=True, metavar="SECONDS")
@click.option("--rpc-timeout", type=_SECONDS, default=1.0, show_default=True, metavar="SECONDS")
def health(
    address: str | None, addr: str | None, service: str, connect_timeout: float, rpc_timeout: float
) -> int:
    """Ask ADDR, or this machine's agentd, whether it serves. Any gRPC server with health checks will do.

    Exit codes: 0 serving, 1 a wrong flag, 2 no connection, 3 the check failed, 4 not serving.
    """
    import grpc

    from agentd.api.channel import CLIENT_OPTIONS

    target = _target(address, addr)
    with grpc.insecure_channel(target, options=CLIENT_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=connect_timeout)
        except grpc.FutureTimeoutError:
            say(f"no connection to {target} within {connect_timeout:g} s")
            return HealthExit.NO_CONNECTION
        return _check(channel, service, rpc_timeout)


def _target(address: str | None, addr: str | None) -> str:
    from agentd.api.errors import InvalidSpec
    from agentd_client.nodes import local_node, node_of

    if address and addr:
        raise click.UsageError("give ADDR once")
    try:
        return node_of(address or addr or "").target if address or addr else local_node(caller.ENVIRON).target
    except InvalidSpec as error:
        raise click.UsageError(error.facts["problem"]) from None


def _check(channel: grpc.Channel, service: str, timeout_s: float) -> int:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    try:
        request = health_pb2.HealthCheckRequest(service=service)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(request, timeout=timeout_s)
    except grpc.RpcError as error:
        say(f"the check failed: {_sentence(error, service, timeout_s)}")
        return HealthExit.RPC_FAILED
    kinds = health_pb2.HealthCheckResponse
    name = kinds.ServingStatus.Name(answer.status)
    click.echo(f"status: {name}")
    return HealthExit.SERVING if answer.status == kinds.SERVING else HealthExit.NOT_SERVING


def _sentence(error: grpc.RpcError, service: str, timeout_s: float) -> str:
    import grpc

    code, details = error.code(), error.details()
    if code is grpc.StatusCode.NOT_FOUND:
        return f"there is no service {service!r} there"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "that server has no health checks (grpc.health.v1)"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"it was not answered within {timeout_s:g} s"
    return f"{code.name.lower()}: {details}"
