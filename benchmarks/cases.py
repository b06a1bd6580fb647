"""What is measured. Each case starts real processes and returns samples."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import psutil

from agentd.api.channel import CLIENT_OPTIONS
from agentd.v1 import agent_service_pb2 as service
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub
from benchmarks import torchrun
from benchmarks.figures import Figure
from tests.support.fleet import Controller, Fleet, agentctl, agentd, fleet, write_script
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from agentd.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

START_S = 60.0
MIB = 2**20
RESTART_TARGETS = {1: "<= 40", 2: "<= 80"}

# First of all each worker notes when it started; then it waits to be killed.
NOTE_START = (
    "import time; began = time.time_ns()",
    "import os, pathlib, sys",
    "note = pathlib.Path(sys.argv[1], os.environ['RANK'] + '-' + str(os.getpid()))",
    "note.with_suffix('.part').write_text(str(began)); note.with_suffix('.part').rename(note)",
    "time.sleep(3600)",
)


def launch(root: Path, rounds: int) -> list[Figure]:
    """A no-op with two workers, from the command to its exit, in milliseconds."""
    script = str(write_script(root / "noop.py", "pass"))
    resident, standalone, theirs = [], [], []
    with agentd(root, "bench", listen=f"unix:{root}/bench.sock") as node:
        for number in range(rounds):
            resident.append(
                _timed(lambda: _ctl("run", "--nodes", node.target, "--nproc-per-node", "2", script))
            )
            standalone.append(_timed(lambda: _ctl("run", "--standalone", "--nproc-per-node", "2", script)))
            if torchrun.available() and number < max(3, rounds // 3):
                theirs.append(_timed(lambda: torchrun.run("--standalone", "--nproc-per-node", "2", script)))
    return [
        Figure(
            what="no-op, 2 workers, on a resident agentd",
            unit="ms",
            ours=tuple(resident),
            torchrun=tuple(theirs),
            target="<= 350",
        ),
        Figure(
            what="no-op, 2 workers, --standalone",
            unit="ms",
            ours=tuple(standalone),
            torchrun=tuple(theirs),
            target="<= 800",
        ),
    ]


def restart(root: Path, nodes: int, rounds: int) -> Figure:
    """A worker is killed: milliseconds until every worker's first line runs again."""
    folder = root / f"restart-{nodes}"
    script = str(write_script(folder / "note.py", *NOTE_START))
    ours = _restarts_of_agentd(folder, nodes, rounds, script)
    theirs = _restarts_of_torchrun(folder, nodes, max(3, rounds // 3), script) if torchrun.available() else ()
    return Figure(
        what=f"worker killed to all workers running again, {nodes} node(s) x 2",
        unit="ms",
        ours=ours,
        torchrun=theirs,
        target=RESTART_TARGETS.get(nodes, ""),
    )


def _restarts_of_agentd(folder: Path, nodes: int, rounds: int, script: str) -> tuple[float, ...]:
    notes = folder / "agentd-notes"
    notes.mkdir()
    with fleet(folder, *(f"n{number}" for number in range(nodes))) as made:
        run = [
            "run",
            "--nodes",
            made.targets(),
            "--nproc-per-node",
            "2",
            "--max-restarts",
            "1000",
            "--run-id",
            "b",
        ]
        with Controller(*run, script, str(notes), root=folder):
            samples = _kills(notes, workers=2 * nodes, rounds=rounds)
            _ctl("stop", "b", "--nodes", made.targets(), "--stop-grace", "1")
    return samples


def _restarts_of_torchrun(folder: Path, nodes: int, rounds: int, script: str) -> tuple[float, ...]:
    notes = folder / "torchrun-notes"
    notes.mkdir()
    with torchrun.group(nodes, folder, "--nproc-per-node=2", "--max-restarts=1000", script, str(notes)):
        return _kills(notes, workers=2 * nodes, rounds=rounds)


def _kills(notes: Path, *, workers: int, rounds: int) -> tuple[float, ...]:
    """Kill the worker of rank 0 again and again; the times until all others' notes are there."""
    samples, known = [], _wait_for_notes(notes, set(), workers)
    for _ in range(rounds):
        victim = next(name for name in known if name.startswith("0-"))
        killed = time.time_ns()
        os.kill(int(victim.partition("-")[2]), signal.SIGKILL)
        seen = {path.name for path in notes.iterdir() if not path.suffix}
        known = _wait_for_notes(notes, seen, workers)
        last = max(int((notes / name).read_text()) for name in known)
        samples.append((last - killed) / 1e6)
    return tuple(samples)


def _wait_for_notes(notes: Path, old: set[str], count: int) -> set[str]:
    def fresh() -> set[str]:
        found = {path.name for path in notes.iterdir() if not path.suffix} - old
        return found if len(found) == count else set()

    return wait_until(fresh, START_S)


def memory(root: Path) -> list[Figure]:
    """Resident memory with one run of one worker, in MiB."""
    folder = root / "memory"
    script = str(write_script(folder / "sleep.py", "import time", "time.sleep(3600)"))
    with fleet(folder, "m") as made:
        _ctl("run", "--detach", "--nodes", made.targets(), "--run-id", "b", script)
        wait_until(lambda: made.workers("b"), START_S)
        daemon = psutil.Process(made["m"].pid).memory_info().rss / MIB
        host = psutil.Process(_host_pid(made)).memory_info().rss / MIB
        _ctl("stop", "b", "--nodes", made.targets(), "--stop-grace", "1")
    theirs: tuple[float, ...] = ()
    if torchrun.available():
        with torchrun.group(1, folder, "--nproc-per-node=1", script) as (pid,):
            wait_until(lambda: psutil.Process(pid).children(), START_S)
            theirs = (psutil.Process(pid).memory_info().rss / MIB,)
    return [
        Figure(what="agentd resident, one run", unit="MiB", ours=(daemon,), torchrun=theirs, target="<= 60"),
        Figure(what="host resident, one worker", unit="MiB", ours=(host,), torchrun=theirs, target="<= 25"),
    ]


IMPORTS = {
    "the agent": "from agentd.elastic import LocalElasticAgent, WorkerSpec",
    "a worker's errors": "from agentd.elastic import record",
    "a worker's timer": "from agentd.elastic.timer import FileTimerClient, configure, expires",
}
"""Names are imported when they are first asked for, so that the library alone says nothing."""


def imports(rounds: int) -> list[Figure]:
    """Importing parts of the elastic library in a fresh interpreter, in milliseconds, beside torch's."""
    theirs: tuple[float, ...] = ()
    if torchrun.available():
        of_torch = "from torch.distributed.elastic.agent.server.api import WorkerSpec"
        theirs = tuple(_import(of_torch) for _ in range(3))
    return [
        Figure(
            what=f"import of agentd.elastic: {part}",
            unit="ms",
            ours=tuple(_import(statement) for _ in range(rounds)),
            torchrun=theirs if part == "the agent" else (),
            target="< 60",
        )
        for part, statement in IMPORTS.items()
    ]


def _import(statement: str) -> float:
    code = (
        f"import time; began = time.perf_counter(); {statement}; print((time.perf_counter() - began) * 1e3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _host_pid(made: Fleet) -> int:
    return int(made.status("b")["nodes"][0]["groups"][0]["host_pid"])


def status(root: Path, calls: int) -> Figure:
    """One client asks for the status of a live run, in milliseconds."""
    folder = root / "status"
    script = str(write_script(folder / "sleep.py", "import time", "time.sleep(3600)"))

    async def ask(target: str) -> tuple[float, ...]:
        async with grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS) as channel:
            stub = cast("AgentServiceAsyncStub", AgentServiceStub(channel))
            request = service.StatusRequest(run_id="b")
            await stub.Status(request, timeout=10)
            samples = []
            for _ in range(calls):
                began = time.perf_counter()
                await stub.Status(request, timeout=10)
                samples.append((time.perf_counter() - began) * 1e3)
            return tuple(samples)

    with fleet(folder, "s") as made:
        _ctl("run", "--detach", "--nodes", made.targets(), "--run-id", "b", "--nproc-per-node", "2", script)
        wait_until(lambda: made.workers("b"), START_S)
        samples = asyncio.run(ask(made["s"].target))
        _ctl("stop", "b", "--nodes", made.targets(), "--stop-grace", "1")
    return Figure(what="Status of a live run, one caller", unit="ms", ours=samples, target="median < 2")


def _ctl(*arguments: str) -> None:
    done = agentctl(*arguments, timeout=120)
    if done.returncode:
        raise RuntimeError(f"agentctl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")


def _timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3
