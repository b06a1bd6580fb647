"""An agent's health checks while it runs: up before its rendezvous, up in its exit barrier."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping

from agentd.elastic.agent.server.health_check_server import (
    PROTOCOL_VARIABLE,
    HealthCheckError,
    HealthCheckServer,
    create_healthcheck_server,
    port_from_env,
)
from agentd.procs.waiter import Waiter

log = logging.getLogger(__name__)

TIMEOUT_S = 60
"""Without a sign of life from the agent for longer than this, its health checks say no. As torch."""


@contextlib.contextmanager
def health_checked(
    given: HealthCheckServer | None,
    env: Mapping[str, str],
    alive_callback: Callable[[], float],
    waiter: Waiter | None,
) -> Iterator[bool]:
    """Serve health checks meanwhile, by `given` or as `env` asks; tells whether it does.

    One that cannot be had is a line in the log: no reason to keep workers from running.
    """
    server = _started(given, env, alive_callback, waiter)
    try:
        yield server is not None
    finally:
        if server is not None:
            server.stop()


def _started(
    given: HealthCheckServer | None,
    env: Mapping[str, str],
    alive_callback: Callable[[], float],
    waiter: Waiter | None,
) -> HealthCheckServer | None:
    try:
        server = given
        if server is None:
            port = port_from_env(env)
            if port is None:
                return None
            protocol = env.get(PROTOCOL_VARIABLE)
            server = create_healthcheck_server(
                alive_callback, port, TIMEOUT_S, protocol=protocol, waiter=waiter
            )
        server.start()
    except HealthCheckError as error:
        log.error("%s", error)
        return None
    return server
