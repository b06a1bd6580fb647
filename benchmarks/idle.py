"""What agentd and a host use of a processor while one run goes on and nothing happens."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.path import cpu_ms, ctl
from tests.support.fleet import fleet, write_script
from tests.support.waiting import wait_until

RUN = "idle"
SETTLES_S = 3.0
LOOKED_AT_S = 10.0
TARGET = "<= 0.3"


def idle(root: Path, rounds: int) -> list[Figure]:
    """Per cent of one processor, over ten seconds each."""
    script = str(write_script(root / "sleep.py", "import time", "time.sleep(3600)"))
    with fleet(root, "a") as made:
        ctl("run", "--detach", "--nodes", made.targets(), "--run-id", RUN, "--nproc-per-node", "2", script)
        wait_until(lambda: made.workers(RUN), 60)
        time.sleep(SETTLES_S)
        host = int(made.status(RUN)["nodes"][0]["groups"][0]["host_pid"])
        samples = [(_share(made["a"].pid), _share(host)) for _ in range(max(1, rounds // 6))]
        ctl("stop", RUN, "--nodes", made.targets(), "--stop-grace", "1")
    names = ("agentd idle with one run", "host idle with two workers")
    return [
        Figure(what=name, unit="% CPU", ours=tuple(sample[number] for sample in samples), target=TARGET)
        for number, name in enumerate(names)
    ]


def _share(pid: int) -> float:
    used, began = cpu_ms([pid]), time.monotonic()
    time.sleep(LOOKED_AT_S)
    return (cpu_ms([pid]) - used) / (time.monotonic() - began) / 10
