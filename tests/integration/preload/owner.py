"""Owns a zygote, a blank and a worker that may have a child; says who they are, and waits to be killed."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from agentd.procs.waiter import Waiter
from agentd.procs.zygote.keeper import Keeper
from tests.integration.preload.rig import PYTHON, Commands, Streams, begin


def main() -> None:
    if "thread" in sys.argv:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    with Waiter() as waiter, Streams() as streams:
        commands = Commands(Path(sys.argv[1]), ("json",))
        argv = (PYTHON, "script.py")
        keeper = Keeper(waiter, commands.recipe(argv))
        parked, begun = keeper.take(2)
        assert parked.identity is not None
        worker = begin(begun, commands.order(argv, streams))
        while not os.fstat(streams.out).st_size:
            waiter.wait(waiter.now() + 0.01)
        child = os.pread(streams.out, 100, 0).decode().strip()
        zygote = next(iter(keeper.sessions())).pid
        print(zygote, parked.identity.pid, worker.pid, child, flush=True)
        waiter.wait_until(lambda: False, None)


if __name__ == "__main__":
    main()
