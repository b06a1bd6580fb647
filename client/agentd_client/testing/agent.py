"""The fake agentd itself: a real gRPC server over a `World`, with faults on request."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc

from agentd.api.channel import SERVER_OPTIONS
from agentd.api.errors import AgentError
from agentd.api.types import LogStream, Phase, RunStatus, StreamEnd, StreamEndCause
from agentd.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from agentd.v1.rendezvous_service_pb2_grpc import add_RendezvousServiceServicer_to_server
from agentd_client.testing.servicers import AgentServicer, HealthServicer, RendezvousServicer, Script
from agentd_client.testing.world import World

THREADS: Final = 64
"""Calls at once; each open stream holds one."""


class FakeAgent:
    """One fake node. A context manager: the server lives inside the block."""

    def __init__(
        self, node_id: str = "fake-0", *, listen: str = "127.0.0.1:0", world: World | None = None
    ) -> None:
        """`listen`: `host:port` or `unix:/path`. `world`: shared by the agents of one fleet."""
        self.world = world or World()
        self._script = Script(node_id=node_id, address=listen, lock=self.world.changed)
        self._server: grpc.Server | None = None

    def __enter__(self) -> FakeAgent:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def node_id(self) -> str:
        """Its node id."""
        return self._script.node_id

    @property
    def target(self) -> str:
        """Where it answers, once started."""
        return self._script.address

    @property
    def serving(self) -> dict[str, bool]:
        """grpc.health.v1 answers, by service name. Change them at will."""
        return self._script.serving

    @property
    def open_streams(self) -> int:
        """Watch and Logs calls that are open."""
        return self._script.streams

    def start(self) -> None:
        """Serve; after `stop` at the same address again."""
        server = grpc.server(ThreadPoolExecutor(THREADS, "fake-agentd"), options=SERVER_OPTIONS)
        add_AgentServiceServicer_to_server(AgentServicer(self._script, self.world), server)
        add_RendezvousServiceServicer_to_server(RendezvousServicer(self._script, self.world), server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self._script), server)
        port = server.add_insecure_port(self.target)
        if not self.target.startswith("unix:"):
            self._script.address = f"{self.target.rpartition(':')[0]}:{port}"
        server.start()
        self._server = server

    def stop(self) -> None:
        """Vanish, as after kill -9."""
        if self._server is None:
            return
        self.break_streams()
        self._server.stop(0).wait(10)
        self._server = None

    def refuse(self, method: str, error: AgentError, *, times: int = 1) -> None:
        """Answer the next calls of an RPC, by name, with an error."""
        with self.world.changed:
            self._script.faults.setdefault(method, deque()).extend([error] * times)

    def delay(self, method: str, seconds: float) -> None:
        """Answer calls of an RPC late from now on."""
        with self.world.changed:
            self._script.delays[method] = seconds

    def requests(self, kind: type[Message] | None = None) -> list[Any]:
        """What has been asked so far, oldest first."""
        with self.world.changed:
            return [r for r in self._script.requests if kind is None or isinstance(r, kind)]

    def break_streams(self) -> None:
        """End every open stream with UNAVAILABLE, as a broken connection does."""
        self._script.next_generation(None)

    def end_streams(self, cause: StreamEndCause, reason: str = "") -> None:
        """End every open stream in good form; later ones live."""
        self._script.next_generation(StreamEnd(cause=cause, reason=reason))


class FakeFleet:
    """Several fake nodes that know the same runs. A context manager."""

    def __init__(self, size: int = 3) -> None:
        self.world = World()
        self.agents = tuple(FakeAgent(f"fake-{i}", world=self.world) for i in range(size))

    def __enter__(self) -> FakeFleet:
        for agent in self.agents:
            agent.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self.agents:
            agent.stop()

    def __getitem__(self, index: int) -> FakeAgent:
        return self.agents[index]

    @property
    def targets(self) -> list[str]:
        """Where they answer."""
        return [agent.target for agent in self.agents]

    def publish(self, run_id: str, **changes: Any) -> RunStatus:
        """Change fields of a run's status."""
        return self.world.publish(run_id, **changes)

    def finish(self, run_id: str, phase: Phase | None = None, **facts: Any) -> RunStatus:
        """End a run; see `World.finish`."""
        return self.world.finish(run_id, phase, **facts)

    def write_log(
        self, run_id: str, *, rank: int = 0, data: bytes, stream: LogStream = LogStream.STDOUT
    ) -> None:
        """A worker writes."""
        self.world.write_log(run_id, rank=rank, data=data, stream=stream)
