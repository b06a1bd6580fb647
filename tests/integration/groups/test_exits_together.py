"""Workers that end together are told together, and each of them is told of."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from agentd.api.types import StopRequest, WorkerState
from tests.support.noding import SLEEP, one_node, program, run_spec
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

SIZE = 8


def ended(state_dir: Path, round_: int) -> Counter[int]:
    """How often the journal tells of the end of a worker, by local rank."""
    db = sqlite3.connect(state_dir / "agentd.db")
    try:
        rows = db.execute("SELECT workers FROM events WHERE kind = 'worker_ended' AND round = ?", (round_,))
        return Counter(worker["local_rank"] for (text,) in rows for worker in json.loads(text))
    finally:
        db.close()


async def test_each_end_is_shown_and_journalled_once(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec(roles=(program(*SLEEP, size=SIZE),), max_restarts=1))
        status = await node.runs("job")
        for worker in status.nodes[0].groups[0].workers:
            os.kill(worker.pid, signal.SIGKILL)
        status = await node.runs("job", 2)
        assert {worker.state for worker in status.nodes[0].groups[0].workers} == {WorkerState.HEALTHY}
        once = Counter(range(SIZE))
        await wait_until_async(lambda: sum(ended(node.state_dir, 1).values()) >= SIZE)
        assert ended(node.state_dir, 1) == once
        await node.registry.stop(StopRequest(run_id="job"))
        await node.ends("job")
        await wait_until_async(lambda: ended(node.state_dir, 2) == once)
