"""A real agentd process and a raw gRPC client for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agentd.api.channel import CLIENT_OPTIONS
from agentd.v1 import agent_service_pb2 as pb
from agentd.v1 import run_pb2
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub
from tests.support.waiting import wait_until

START_S = 60.0
CALL_S = 20.0
END_S = 60.0


@dataclass
class Daemon:
    """One agentd process below a folder of its own."""

    folder: Path
    flags: tuple[str, ...] = ("--listen", "127.0.0.1:0")
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        command = [
            *(sys.executable, "-m", "agentd", "--state-dir", str(self.state_dir), "--node-id", "n"),
            *("--port-file", str(self.folder / "port"), "--log-format", "json", *self.flags),
        ]
        with (self.folder / "out").open("ab") as out, (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, "XDG_RUNTIME_DIR": str(self.folder), **self.env},
                pass_fds=self.pass_fds,
            )

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def targets(self) -> list[str]:
        """What it printed that it serves on."""
        lines = (self.folder / "out").read_text().splitlines()
        return [line.removeprefix("serving on ") for line in lines]

    def serving(self) -> Daemon:
        """Wait until it serves."""
        wait_until(lambda: (self.folder / "port").exists() or self.process.poll() is not None, START_S)
        assert self.process.poll() is None, self.said()
        return self

    def said(self) -> str:
        """Its log."""
        return (self.folder / "log").read_text()

    def events(self) -> list[dict[str, Any]]:
        """Its log, event by event."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event of that name."""
        return wait_until(lambda: next((e for e in self.events() if e["event"] == name), None), START_S) or {}

    def signal(self, signum: int = signal.SIGTERM) -> None:
        self.process.send_signal(signum)

    def ended(self, timeout: float = END_S) -> int:
        """Wait for its exit code."""
        return self.process.wait(timeout)


@contextlib.contextmanager
def running(folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Daemon]:
    """An agentd that serves, shut down or killed at the end."""
    daemon = Daemon(folder, flags or ("--listen", "127.0.0.1:0"), env or {})
    with ending(daemon):
        yield daemon.serving()


@contextlib.contextmanager
def ending(daemon: Daemon) -> Iterator[Daemon]:
    """Whatever happens, the process is gone at the end, and its groups with it."""
    try:
        yield daemon
    finally:
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if daemon.process.poll() is None:
                daemon.process.send_signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.process.wait(END_S / 3)


def refused(folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The exit code and the words of an agentd that does not start."""
    with ending(Daemon(folder, flags, env or {})) as daemon:
        return daemon.ended(), daemon.said()


@contextlib.contextmanager
def calling(target: str) -> Iterator[Any]:
    """The generated stub on a channel of its own. Not by its type, which is the asyncio one's too."""
    with grpc.insecure_channel(target, options=CLIENT_OPTIONS) as channel:
        yield AgentServiceStub(channel)


@contextlib.contextmanager
def health_of(target: str) -> Iterator[Any]:
    """The packaged health client."""
    with grpc.insecure_channel(target, options=CLIENT_OPTIONS) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def is_serving(health: Any, name: str = "") -> bool:
    answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=CALL_S)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def script(folder: Path, text: str) -> Path:
    """A worker's program."""
    path = folder / f"worker-{time.monotonic_ns()}.py"
    path.write_text(text)
    return path


def a_run(run_id: str, program: Path, *, grace_s: int = 5, count: int = 1, **spec: Any) -> pb.RunRequest:
    """A request for `count` workers of a script on this node."""
    request = pb.RunRequest(request_id=f"q-{run_id}", spec=run_pb2.RunSpec(run_id=run_id, **spec))
    request.spec.stop_grace.seconds = grace_s
    role = request.spec.roles.add()
    role.local_world_size.count = count
    role.command.entrypoint = str(program)
    role.command.python = sys.executable
    role.command.working_directory = str(program.parent)
    return request


def phase_of(agent: Any, run_id: str) -> int:
    status = agent.Status(pb.StatusRequest(run_id=run_id), timeout=CALL_S)
    return int(status.runs[0].phase)


def wait_for_phase(agent: Any, run_id: str, *phases: int) -> None:
    wait_until(lambda: phase_of(agent, run_id) in phases, START_S, what=f"{run_id} in {phases}")
