"""`python -m benchmarks.watchers TARGET RUN COUNT`: open that many Watch streams, each on its own connection.

Says `watching` once each has its first snapshot; then, for each line on standard input, how many snapshots
came since the last, and at its end is gone.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any, Final, cast

import grpc.aio

from agentd.api.channel import CLIENT_OPTIONS
from agentd.v1 import agent_service_pb2 as service
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub

OWN_CONNECTION: Final = (*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
"""Channels of one process to one address share a connection otherwise; watchers on many machines do not."""


async def watch(target: str, run_id: str, count: int) -> None:
    """Watch until nobody asks any more."""
    seen = 0
    first = asyncio.Semaphore(0)

    async def one() -> None:
        nonlocal seen
        channel = grpc.aio.insecure_channel(target, options=OWN_CONNECTION)
        # The generated stubs are typed for synchronous channels.
        stub: Any = AgentServiceStub(cast("grpc.Channel", channel))
        fresh = True
        async for answer in stub.Watch(service.WatchRequest(run_id=run_id)):
            if answer.HasField("status"):
                seen += 1
                if fresh:
                    fresh = False
                    first.release()

    watching = [asyncio.ensure_future(one()) for _ in range(count)]
    for _ in range(count):
        await first.acquire()
    seen = 0
    print("watching", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(seen, flush=True)
        seen = 0
    for task in watching:
        task.cancel()


def main() -> None:
    """Watch as asked."""
    gc.disable()
    target, run_id, count = sys.argv[1:]
    asyncio.run(watch(target, run_id, int(count)))


if __name__ == "__main__":
    main()
