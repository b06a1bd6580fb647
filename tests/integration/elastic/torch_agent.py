"""A program: one agent of ours on a rendezvous made by name; tells in JSON how its run ended.

It is a process of its own because torch's handlers and stores keep threads and sockets until their end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, WorkerSpec
from agentd.elastic.rendezvous import RendezvousParameters
from agentd.elastic.rendezvous.registry import get_rendezvous_handler


def main(params: dict[str, Any], logs: str, size: int, restarts: int, script: str) -> None:
    """Run `size` shells with the script."""
    handler = get_rendezvous_handler(RendezvousParameters(**params))
    spec = WorkerSpec(
        "w", size, handler, entrypoint="sh", args=("-c", script), max_restarts=restarts, monitor_interval=0.05
    )
    agent = LocalElasticAgent(spec, RoundLogsSpecs(logs), shutdown_timeout=10, exit_barrier_timeout=30)
    result = agent.run()
    handler.shutdown()
    group = agent.get_worker_group()
    told = {
        "state": result.state.value,
        "ranks": sorted(result.return_values),
        "failures": {rank: failure.exitcode for rank, failure in result.failures.items()},
        "round": group.round,
        "remaining": agent._remaining_restarts,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
