"""64 workers started at once, as a host starts them, and beside it what the kernel alone takes for as many.

Each sample is taken in a process of its own that has imported what a host has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.figures import Figure

WORKERS = 64
TARGET = "<= 130"

PROGRAM = """
import json, os, resource, subprocess, sys, time
import agentd.host.session
from agentd.procs.spawn import Order, spawn_all

count, way = int(sys.argv[1]), sys.argv[2]
argv = ["/bin/sleep", "1000"]
orders = [Order(argv=argv, env=os.environ) for _ in range(count)]

def used():
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime

cpu, began = used(), time.perf_counter()
if way == "linked":
    children = [child.pid for child in spawn_all(orders)]
else:
    children = [os.posix_spawn(argv[0], argv, os.environ, setsid=True) for _ in range(count)]
took, cpu = time.perf_counter() - began, used() - cpu
for pid in children:
    os.kill(pid, 9)
for pid in children:
    os.waitpid(pid, 0)
print(json.dumps([took * 1e3, cpu * 1e3]))
"""


def spawning(rounds: int) -> list[Figure]:
    """Milliseconds until all programs run, and the processor time of the process that starts them."""
    linked = [_sample("linked") for _ in range(rounds)]
    floor = [_sample("vfork") for _ in range(rounds)]
    return [
        Figure(
            what=f"spawn {WORKERS} workers with parent-death signal and lifeline",
            unit="ms",
            ours=_column(linked, 0),
            target=TARGET,
        ),
        Figure(what="... CPU of the host", unit="ms", ours=_column(linked, 1)),
        Figure(
            what=f"spawn {WORKERS} by vfork, tied to nobody: the floor", unit="ms", ours=_column(floor, 0)
        ),
    ]


def _sample(way: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(WORKERS), way],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    took, cpu = json.loads(done.stdout)
    return took, cpu


def _column(samples: Sequence[tuple[float, float]], number: int) -> tuple[float, ...]:
    return tuple(sample[number] for sample in samples)
