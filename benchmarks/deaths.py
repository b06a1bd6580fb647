"""A node's agentd is killed: how soon every other node's Watch stream shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Final

from agentd.api.types import RunStatus
from agentd_client import AsyncAgentClient
from benchmarks.figures import Figure
from tests.support.fleet import Fleet, agentctl, fleet, write_script
from tests.support.waiting import wait_until

RUN: Final = "deaths"
NODES: Final = ("a", "b", "c", "d")
VICTIM: Final = "d"
PATIENCE_S: Final = 60.0


def deaths(root: Path, rounds: int) -> list[Figure]:
    """The victim is a member, no hub. Its workers go on, and so does the round."""
    script = str(write_script(root / "sleep.py", "import time", "time.sleep(3600)"))
    with fleet(root, *NODES) as made:
        _ctl("run", "--detach", "--nodes", made.targets(), "--run-id", RUN, script)
        wait_until(lambda: len(made.workers(RUN)) == len(NODES), PATIENCE_S)
        samples = asyncio.run(_deaths(made, rounds))
        _ctl("stop", RUN, "--nodes", made.targets(), "--stop-grace", "1")
    what = f"agentd of one of {len(NODES)} nodes killed: the Watch streams of all others tell"
    return [Figure(what=what, unit="ms", ours=tuple(samples), target="<= 100")]


async def _deaths(made: Fleet, rounds: int) -> list[float]:
    """All on one loop: gRPC tells a loop that is closed what it hears late, and complains."""
    samples: list[float] = []
    for _ in range(rounds):
        samples += await asyncio.wait_for(_one_death(made), PATIENCE_S)
        await asyncio.to_thread(_bring_back, made)
    return samples


def _bring_back(made: Fleet) -> None:
    made.again(VICTIM)
    wait_until(lambda: not any(node["detached"] for node in made.status(RUN)["nodes"]), PATIENCE_S)


async def _one_death(made: Fleet) -> list[float]:
    """Milliseconds until each other node has told."""
    others = [name for name in NODES if name != VICTIM]
    async with AsyncExitStack() as stack:
        streams = []
        for name in others:
            client = await stack.enter_async_context(AsyncAgentClient(made[name].target))
            streams.append(await stack.enter_async_context(aclosing(client.watch(RUN))))
        await asyncio.gather(*(_until(stream, detached=False) for stream in streams))
        waiting = [asyncio.ensure_future(_until(stream, detached=True)) for stream in streams]
        killed = time.perf_counter()
        await asyncio.to_thread(made[VICTIM].kill)
        told = await asyncio.gather(*waiting)
    return [(at - killed) * 1e3 for at in told]


async def _until(stream: AsyncGenerator[RunStatus, None], *, detached: bool) -> float:
    """When the stream shows the victim so."""
    async for status in stream:
        if any(node.node_id == VICTIM and node.detached is detached for node in status.nodes):
            return time.perf_counter()
    raise RuntimeError("the stream ended")


def _ctl(*arguments: str) -> None:
    done = agentctl(*arguments, timeout=PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"agentctl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
