"""`python -m benchmarks.followers TARGET RUN COUNT`: that many readers follow a run's output to its end.

Says `following` once each has read something; at the end, how many bytes each has read.
"""

from __future__ import annotations

import asyncio
import json
import sys

from agentd.api.types import LogsRequest
from agentd_client import AsyncAgentClient


async def follow(target: str, run_id: str, count: int) -> list[int]:
    """Read until the run is over."""
    reading = asyncio.Semaphore(0)

    async def one() -> int:
        read = 0
        async with AsyncAgentClient(target) as client:
            async for chunk in client.logs(LogsRequest(run_id=run_id, follow=True)):
                if not read:
                    reading.release()
                read += len(chunk.data)
        return read

    readers = [asyncio.ensure_future(one()) for _ in range(count)]
    for _ in range(count):
        await reading.acquire()
    print("following", flush=True)
    return await asyncio.gather(*readers)


def main() -> None:
    """Follow as asked."""
    target, run_id, count = sys.argv[1:]
    print(json.dumps(asyncio.run(follow(target, run_id, int(count)))))


if __name__ == "__main__":
    main()
