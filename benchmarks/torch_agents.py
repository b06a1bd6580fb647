"""`python -m benchmarks.torch_agents COUNT`: seconds until so many handlers of torch's rendezvous have met.

Each has a thread and a connection of its own to one store, as the agents of torchrun have.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, create_handler

PATIENCE_S = 240.0


def main() -> None:
    """Let them meet once."""
    count = int(sys.argv[1])
    ranks: list[int] = []
    handlers: list[DynamicRendezvousHandler] = []
    endpoint = f"127.0.0.1:{_free_port()}"

    def meet(number: int) -> None:
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint=endpoint,
            run_id="bench",
            min_nodes=count,
            max_nodes=count,
            is_host=number == 0,
            join_timeout=PATIENCE_S,
        )
        backend, store = create_backend(parameters)
        # The first one serves the store: it stays until all have met.
        handlers.append(handler := create_handler(store, backend, parameters))
        ranks.append(handler.next_rendezvous().rank)

    threads = [threading.Thread(target=meet, args=(number,), daemon=True) for number in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(ranks) == list(range(count)), f"only {len(ranks)} of {count} have met"
    print(time.perf_counter() - began)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
