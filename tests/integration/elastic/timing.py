"""Timer servers over real workers: programs that hang, and what is seen of them from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentd.elastic.timer import FileTimerClient, FileTimerRequest, FileTimerServer
from agentd.procs.stack_signal import SIGNAL_VARIABLE, default_signal
from agentd.procs.waiter import Waiter
from tests.support.waiting import wait_until

ASKS_FOR_STACKS = {SIGNAL_VARIABLE: str(default_signal())}

EXPIRED = r"timer 'step' expired (1|0\.\d) s after it was set"
"""What is told of `HANGS`: counted from when the server hears of it, on a busy machine a little late."""

HANGS = """
import os, sys, time
from agentd.elastic import timer

def the_hanging_function():
    open(os.environ["FOLDER"] + "/hangs." + str(os.getpid()), "w").close()
    while True:
        time.sleep(1000)

signum = int(os.environ.get("SIGNAL", "9"))
timer.configure(timer.FileTimerClient(os.environ["TORCHELASTIC_TIMER_FILE"], signum))
with timer.expires(after=float(os.environ.get("AFTER", "1.0")), scope="step"):
    the_hanging_function()
"""

RAW_HANGS = """
import json, os, time

def the_hanging_function():
    while True:
        time.sleep(1000)

fields = {"version": 1, "pid": os.getpid(), "scope_id": "step"}
fields.update(expiration_time=time.time() + 1.0, signal=9)
with open(os.environ["TORCHELASTIC_TIMER_FILE"], "w") as pipe:
    pipe.write(json.dumps(fields) + "\\n")
the_hanging_function()
"""
"""A worker that has nothing of agentd's, like one with torch's client."""


@dataclass
class TimerRig:
    """Workers and what the server of their timers told."""

    folder: Path
    events: list[tuple[str, FileTimerRequest | None]] = field(default_factory=list)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    servers: list[FileTimerServer] = field(default_factory=list)

    @property
    def pipe(self) -> str:
        return str(self.folder / "timer")

    def server(
        self, *, started: bool = True, waiter: Waiter | None = None, **options: object
    ) -> FileTimerServer:
        server = FileTimerServer(
            self.pipe,
            "the-run",
            0.1,
            log_event=self.told,
            waiter=waiter,
            **options,  # type: ignore[arg-type]
        )
        self.servers.append(server)
        if started:
            server.start()
        return server

    def told(self, name: str, request: FileTimerRequest | None) -> None:
        self.events.append((name, request))

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def worker(
        self,
        code: str = HANGS,
        name: str = "0",
        env: Mapping[str, str] | None = None,
        program: str = sys.executable,
    ) -> subprocess.Popen[bytes]:
        """A worker with a log folder of its own, which its TORCHELASTIC_ERROR_FILE tells."""
        logs = self.logs(name)
        logs.mkdir(exist_ok=True)
        known = {"FOLDER": str(self.folder), "TORCHELASTIC_TIMER_FILE": self.pipe}
        known["TORCHELASTIC_ERROR_FILE"] = str(logs / "error.json")
        with open(logs / "stderr.log", "ab") as stderr:
            worker = subprocess.Popen(
                [program, "-c", code],
                env={**os.environ, **known, **(env or {})},
                cwd=self.folder,
                stderr=stderr,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def logs(self, name: str = "0") -> Path:
        return self.folder / f"logs_{name}"

    def stacks(self, name: str = "0") -> str:
        """What was kept of the worker's stacks; written in one piece after its death."""
        path = self.logs(name) / "stacks.txt"
        wait_until(lambda: path.exists() and path.stat().st_size, what=f"{path} is written")
        return path.read_text()

    def send(self, pid: int, after: float = -1000.0, scope: str = "raw", signal: int = 9) -> None:
        """A line as a client writes it; by default for a timer that has run out long ago."""
        fields = {"version": 1, "pid": pid, "scope_id": scope, "expiration_time": time.time() + after}
        self.write(json.dumps({**fields, "signal": signal}).encode() + b"\n")

    def send_by_client(self, pid: int) -> None:
        """As `send`, with a client's patience."""
        client = FileTimerClient(self.pipe)
        client._send_request(FileTimerRequest(pid, "raw", 1.0, 9))

    def write(self, data: bytes) -> None:
        with open(self.pipe, "wb", buffering=0) as pipe:
            pipe.write(data)

    def close(self) -> None:
        for server in self.servers:
            server.stop()
        for worker in self.workers:
            worker.kill()
            worker.wait()


def exit_of(worker: subprocess.Popen[bytes], within: float = 60.0) -> int:
    """How the worker ends: minus the signal's number."""
    return worker.wait(timeout=within)


def quiet_worker(rig: TimerRig, name: str = "quiet") -> subprocess.Popen[bytes]:
    """A child that has nothing to do with timers and lives until the rig is closed."""
    return rig.worker("import time; time.sleep(1000)", name)
