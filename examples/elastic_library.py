"""The elastic library in your own process, without a daemon: functions as workers, restarts, return values.

python examples/elastic_library.py                                   # two workers on this machine

With agents on several machines, or in several terminals, that meet at any agentd (here one without workers
of its own), start it once for each:

agentd --listen 127.0.0.1:7460 --insecure
python examples/elastic_library.py --backend agentd --endpoint 127.0.0.1:7460 --nodes 2
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

from agentd.elastic import (
    ChildFailedError,
    DefaultLogsSpecs,
    LocalElasticAgent,
    RendezvousParameters,
    SignalException,
    Std,
    WorkerSpec,
    get_rendezvous_handler,
)


def work(numbers: int) -> int:
    """A worker's share of a sum; the first time round, rank 0 fails."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    print(f"rank {rank} of {world_size}, restart {restarts}", flush=True)
    if rank == 0 and restarts == 0:
        raise RuntimeError("this is what a restart is for")
    return sum(range(rank, numbers, world_size))


def main() -> int:
    """Run the agent of this process and say what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="in-memory", help="default: %(default)s")
    parser.add_argument("--endpoint", default="", help="where the agents meet, if the backend needs it")
    parser.add_argument("--nodes", type=int, default=1, help="how many agents there are (default: 1)")
    parser.add_argument("--workers", type=int, default=2, help="workers of this agent (default: 2)")
    parser.add_argument("--run-id", default="sum", help="the same for all agents (default: %(default)s)")
    options = parser.parse_args()

    meeting = RendezvousParameters(
        options.backend, options.endpoint, options.run_id, options.nodes, options.nodes
    )
    handler = get_rendezvous_handler(meeting)
    spec = WorkerSpec(
        role="adder",
        local_world_size=options.workers,
        rdzv_handler=handler,
        entrypoint=work,
        args=(1_000_000,),
        max_restarts=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        agent = LocalElasticAgent(spec, DefaultLogsSpecs(folder, tee=Std.ALL))
        try:
            result = agent.run()
        except SignalException as stop:
            return 128 + stop.sigval
        finally:
            handler.shutdown()
    if result.is_failed():
        if result.failures:
            print(ChildFailedError("adder", result.failures), file=sys.stderr)
        print(result.reason, file=sys.stderr)
        return 1
    for rank, value in sorted(result.return_values.items()):
        print(f"rank {rank} returned {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
