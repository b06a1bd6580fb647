"""What open streams cost: Status beside a thousand watchers, and log output for one reader and for twenty."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import grpc.aio

from agentd.api.channel import CLIENT_OPTIONS
from agentd.api.types import LogsRequest
from agentd.v1 import agent_service_pb2 as service
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub
from agentd_client import AgentClient
from benchmarks.figures import Figure
from tests.support.fleet import Fleet, agentctl, fleet, write_script
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from agentd.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

RUN: Final = "streams"
WATCHERS: Final = 1000
START_S: Final = 60.0
PAUSE_S: Final = 0.005
CHANGE_EACH_S: Final = 1.0
STATUS_CALLS: Final = 1000
READERS: Final = 20
LOG_MB: Final = 200
WRITES: Final = 5000
# Writes a lot of lines, then sleeps.
WRITE_MUCH: Final = (
    "import os, pathlib, sys, time",
    "lines = (b'x' * 99 + b'\\n') * 10_000",
    f"for _ in range({LOG_MB}): os.write(1, lines)",
    "pathlib.Path(sys.argv[1]).touch()",
    "time.sleep(3600)",
)
# Says hello, waits for a word, then writes 50 lines each millisecond and notes how long each write took.
WRITE_PACED: Final = (
    "import json, os, pathlib, sys, time",
    "lines = (b'x' * 99 + b'\\n') * 50",
    "os.write(1, b'hello\\n')",
    "while not os.path.exists(sys.argv[1]): time.sleep(0.01)",
    "took, due = [], time.perf_counter()",
    f"for _ in range({WRITES}):",
    "    began = time.perf_counter()",
    "    os.write(1, lines)",
    "    took.append(time.perf_counter() - began)",
    "    due += 0.001",
    "    time.sleep(max(0.0, due - time.perf_counter()))",
    "pathlib.Path(sys.argv[2]).write_text(json.dumps(took))",
)


def watching(root: Path) -> list[Figure]:
    """Status of a live run with a thousand Watch streams open, while nothing happens and in restarts."""
    script = str(write_script(root / "sleep.py", "import time", "time.sleep(3600)"))
    with fleet(root, "w") as made, _run(made, "--nproc-per-node", "2", "--max-restarts", "100000", script):
        wait_until(lambda: made.workers(RUN), START_S)
        with _watchers(made["w"].target):
            calm = asyncio.run(_ask(made, STATUS_CALLS))
            restarting = asyncio.run(_ask_while_it_restarts(made, STATUS_CALLS))
    what = f"Status beside {WATCHERS:,} watchers"
    return [
        Figure(what=what, unit="ms", ours=calm, target="median <= 2, p99 <= 10"),
        Figure(what=f"{what}, the run restarts each second", unit="ms", ours=restarting),
    ]


def logs(root: Path, rounds: int) -> list[Figure]:
    """How fast the output of a worker is read, and whether a worker feels that twenty read it."""
    with fleet(root, "w") as made:
        read = _read_whole(made, root, max(3, rounds // 3))
        alone, _ = _writes(made, root, readers=0)
        followed, given = _writes(made, root, readers=READERS)
    write = "a worker writes 50 lines each millisecond: one write"
    return [
        Figure(what="output of a worker, read by one", unit="MB/s", ours=read, target=">= 100"),
        Figure(what=f"{write}, nobody reads", unit="us", ours=alone),
        Figure(what=f"{write}, {READERS} follow", unit="us", ours=followed, target="the same"),
        Figure(what=f"... what the {READERS} were given, in all", unit="MB/s", ours=given),
    ]


def _read_whole(made: Fleet, root: Path, rounds: int) -> tuple[float, ...]:
    script, done = str(write_script(root / "much.py", *WRITE_MUCH)), root / "done"
    samples = []
    with _run(made, script, str(done)), AgentClient(made["w"].target) as client:
        wait_until(done.exists, START_S)
        for _ in range(rounds):
            began = time.perf_counter()
            size = sum(len(chunk.data) for chunk in client.logs(LogsRequest(run_id=RUN)))
            samples.append(size / 1e6 / (time.perf_counter() - began))
            if size != LOG_MB * 1_000_000:
                raise RuntimeError(f"{size} bytes were read of {LOG_MB} MB")
    return tuple(samples)


def _writes(made: Fleet, root: Path, *, readers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Microseconds of each write of a worker that is followed, and megabytes a second for its readers."""
    script = str(write_script(root / "paced.py", *WRITE_PACED))
    go, notes = root / f"go-{readers}", root / f"notes-{readers}"
    with _run(made, script, str(go), str(notes)), _followers(made["w"].target, readers) as followers:
        began = time.perf_counter()
        go.touch()
        wait_until(notes.exists, START_S)
        given = followers.communicate(timeout=START_S)[0] if followers else "[]"
        took = time.perf_counter() - began
    wait_until(lambda: made.phase(RUN) == "PHASE_SUCCEEDED", START_S)
    writes = tuple(each * 1e6 for each in json.loads(notes.read_text()))
    return writes, (sum(json.loads(given)) / 1e6 / took,)


@contextlib.contextmanager
def _followers(target: str, count: int) -> Iterator[subprocess.Popen[str] | None]:
    if not count:
        yield None
        return
    command = [sys.executable, "-m", "benchmarks.followers", target, RUN, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "following\n":
                raise RuntimeError("not all followers have read something")
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def _run(made: Fleet, *arguments: str) -> Iterator[None]:
    _ctl("run", "--detach", "--nodes", made.targets(), "--run-id", RUN, *arguments)
    yield
    _ctl("stop", RUN, "--nodes", made.targets(), "--stop-grace", "1")


@contextlib.contextmanager
def _watchers(target: str) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.watchers", target, RUN, str(WATCHERS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "watching\n":
                raise RuntimeError("not all watchers have seen the run")
            yield
        finally:
            process.kill()


async def _ask(made: Fleet, calls: int) -> tuple[float, ...]:
    async with grpc.aio.insecure_channel(made["w"].target, options=CLIENT_OPTIONS) as channel:
        stub = cast("AgentServiceAsyncStub", AgentServiceStub(channel))
        request = service.StatusRequest(run_id=RUN)
        await stub.Status(request, timeout=10)
        samples = []
        for _ in range(calls):
            began = time.perf_counter()
            await stub.Status(request, timeout=10)
            samples.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(PAUSE_S)
        return tuple(samples)


async def _ask_while_it_restarts(made: Fleet, calls: int) -> tuple[float, ...]:
    restarting = asyncio.ensure_future(_restart_again_and_again(made))
    try:
        return await _ask(made, calls)
    finally:
        restarting.cancel()


async def _restart_again_and_again(made: Fleet) -> None:
    while True:
        for worker in await asyncio.to_thread(made.workers, RUN):
            if worker["rank"] == 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(worker["pid"]), signal.SIGKILL)
        await asyncio.sleep(CHANGE_EACH_S)


def _ctl(*arguments: str) -> None:
    done = agentctl(*arguments, timeout=START_S)
    if done.returncode:
        raise RuntimeError(f"agentctl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
