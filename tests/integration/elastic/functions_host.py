"""A process with a group of function workers, to be killed or signalled by a test.

Spawned workers import it, too.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from agentd.elastic.multiprocessing import RoundLogsSpecs, SignalException, start_processes
from tests.integration.elastic import functions

if __name__ == "__main__":
    folder, method = sys.argv[1:3]
    env = {"AGENTD_ROUND": "1"}
    context = start_processes(
        "trainer",
        functions.sleep_beside_grandchild,
        {rank: (folder, f"up{rank}") for rank in range(2)},
        {rank: dict(env) for rank in range(2)},
        RoundLogsSpecs(folder),
        start_method=method,
    )
    if "bystander" in sys.argv and os.fork() == 0:
        Path(folder, "bystander").write_text(str(os.getpid()))
        time.sleep(1000)
    Path(folder, "pids").write_text(" ".join(str(pid) for pid in context.pids().values()))
    try:
        context.wait()
    except SignalException as signalled:
        context.close(timeout=5)
        sys.exit(100 + signalled.sigval)
elif os.environ.get("MAIN_MODULE_FAILS"):
    raise LookupError("the main module cannot be imported here")
