"""One client and a thousand nodes: Run, Status and Stop, on fresh connections and on warm ones."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Final, TypeVar

from agentd.api.types import Command, Phase, RoleSpec, RunSpec
from agentd_client import AsyncFleet
from benchmarks.figures import Figure

T = TypeVar("T")
NODES: Final = 1000
WORKERS: Final = 8000
RUN: Final = "fanout"
SETTLE_S: Final = 60.0
TIMEOUT_S: Final = 60.0
"""Patience with a machine that does other things besides."""


def fanout(rounds: int) -> list[Figure]:
    """Each sample has nodes of its own, see `benchmarks.light`, and a client of its own."""
    samples: dict[str, list[float]] = {}
    for _ in range(max(2, rounds // 4)):
        with _nodes() as targets:
            asyncio.run(_one_run(targets, samples))
    each = f"one client, {NODES:,} nodes"
    return [
        Figure(what=f"{each}: Run", unit="ms", ours=tuple(samples["run"]), target="<= 2000"),
        Figure(what=f"{each}: Status, first", unit="ms", ours=tuple(samples["first"]), target="<= 2000"),
        Figure(what=f"{each}: Status, warm", unit="ms", ours=tuple(samples["warm"]), target="<= 1000"),
        Figure(what=f"{each}: Stop, warm", unit="ms", ours=tuple(samples["stop"]), target="<= 1000"),
    ]


@contextlib.contextmanager
def _nodes() -> Iterator[list[str]]:
    command = [sys.executable, "-m", "benchmarks.light", str(NODES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield [process.stdout.readline().strip() for _ in range(NODES)]
        finally:
            process.kill()


async def _one_run(targets: Sequence[str], samples: dict[str, list[float]]) -> None:
    spec = RunSpec(run_id=RUN, roles=(RoleSpec(command=Command(entrypoint="train.py")),))

    async def timed(what: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        done = await work
        samples.setdefault(what, []).append((time.perf_counter() - began) * 1e3)
        return done

    async with AsyncFleet(targets, timeout_s=TIMEOUT_S) as fleet:
        handle = await timed("run", fleet.run(spec))
        assert handle.launched is not None
        assert not handle.launched.problems
        deadline = time.monotonic() + SETTLE_S
        while (await handle.status()).status.phase is not Phase.RUNNING:
            assert time.monotonic() < deadline, "no round has formed"
    async with AsyncFleet(targets, timeout_s=TIMEOUT_S) as fleet:
        await timed("first", fleet.list_runs())
        handle = await fleet.find(RUN)
        report = await timed("warm", handle.status())
        assert not report.problems
        assert sum(len(g.workers) for node in report.status.nodes for g in node.groups) == WORKERS
        await timed("stop", handle.stop())
