"""What each program costs to start: milliseconds on the clock and of CPU, and which imports they go to.

`python -m benchmarks.startup` shows these figures alone, and the heaviest imports of each program.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console

from agentd.api.types import Command, EntrypointKind, RoleSpec, RunSpec
from agentd.host.stock import IN_STOCK
from agentd_client import Fleet
from benchmarks.figures import Figure, show
from tests.support.waiting import wait_until

PATIENCE_S: Final = 60.0
BIN: Final = Path(sys.executable).parent
PROGRAMS: Final = {
    "agentctl run": "agentctl.commands.run, agentctl.spec, agentctl.attached, agentctl.show.display",
    "agentd": "agentd.cli, agentd.daemon.service",
    "host": "agentd.host.session",
}
"""What each imports before it does what it is for."""
TARGETS: Final = {
    "agentctl run, 2 no-ops, agentd is there": "<= 350",
    "agentctl run --standalone, 2 no-ops": "<= 800",
    "Run to a worker's first instruction (CPU of agentd)": "<= 60",
}
WARM_UPS: Final = 2
"""Rounds until agentd has what it has in the long run."""
REST_S: Final = 0.05
LIBRARY: Final = "agentd.elastic.agent.server"
_IMPORT: Final = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one start, in milliseconds."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Program:
    """Processes of an agentd that has just said that it serves."""

    target: str
    pid: int
    cost: Cost


def startup(root: Path, rounds: int) -> list[Figure]:
    """Every program's start, and how soon a Run has a worker."""
    samples: defaultdict[str, list[Cost]] = defaultdict(list)
    for number in range(rounds):
        with serving(root / f"d{number}") as daemon:
            samples["agentd, to its first answer"].append(daemon.cost)
    with serving(root / "resident") as daemon, Fleet([daemon.target]) as client:
        for number in range(WARM_UPS + rounds):
            noop = ("run", "--nodes", daemon.target, "--nproc-per-node", "2", "--no-python", "true")
            taken = {
                "agentctl version": _ended("version"),
                "agentctl run, 2 no-ops, agentd is there": _ended(*noop),
                "agentctl run --standalone, 2 no-ops": _ended("run", "--standalone", *noop[3:]),
            }
            if number >= WARM_UPS:
                _wait_for_stock(daemon.pid)
            cost = _first_instruction(client, daemon.pid, root / f"note-{number}", f"first-{number}")
            taken["Run to a worker's first instruction (CPU of agentd)"] = cost
            if number >= WARM_UPS:
                _wait_for_stock(daemon.pid)
                for what, cost in taken.items():
                    samples[what].append(cost)
    for program, modules in PROGRAMS.items():
        samples[f"imports of {program}"] += [_imported(modules) for _ in range(rounds)]
    return [figure for what, costs in samples.items() for figure in _figures(what, costs)]


@contextlib.contextmanager
def serving(home: Path) -> Iterator[Program]:
    """An agentd, and what it cost until it served."""
    home.mkdir(parents=True)
    read, write = os.pipe()
    target = f"unix:{home}/s"
    flags = ("--state-dir", str(home / "state"), "--listen", target, "--ready-fd", str(write))
    began = time.perf_counter()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([BIN / "agentd", *flags], pass_fds=(write,), stdout=log, stderr=log)
    os.close(write)
    try:
        if not os.read(read, 4096):
            raise RuntimeError(f"agentd ended at once:\n{(home / 'log').read_text()}")
        yield Program(target, process.pid, Cost(_since(began), cpu_ms(process.pid)))
    finally:
        os.close(read)
        process.terminate()
        process.wait(PATIENCE_S)


def cpu_ms(pid: int) -> float:
    """CPU time of a living process with all its threads, to the nanosecond that the scheduler counts in."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e6


def _ended(*arguments: str) -> Cost:
    """An agentctl from its start to its end, with the children it waited for."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [BIN / "agentctl", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"agentctl {' '.join(arguments)} ended with {process.returncode}")
    return Cost(_since(began), (usage.ru_utime + usage.ru_stime) * 1e3)


def _first_instruction(client: Fleet, daemon: int, note: Path, run_id: str) -> Cost:
    """What lies between a Run and its worker's first instruction."""
    tell = f"date +%s%N > {note}.part; mv {note}.part {note}; exec sleep 3600"
    command = Command(kind=EntrypointKind.EXECUTABLE, entrypoint="sh", arguments=("-c", tell))
    before, began = cpu_ms(daemon), time.time_ns()
    handle = client.run(RunSpec(run_id=run_id, roles=(RoleSpec(command=command),)))
    first = (int(wait_until(lambda: note.exists() and note.read_text(), PATIENCE_S)) - began) / 1e6
    cost = Cost(first, cpu_ms(daemon) - before)
    handle.stop(grace=0.0)
    handle.wait()
    return cost


def _wait_for_stock(daemon: int) -> None:
    """Until agentd has put a host in stock again, as it has between two runs of people."""

    def rests() -> bool:
        found = [child for child in psutil.Process(daemon).children() if IN_STOCK in child.cmdline()]
        before = [cpu_ms(child.pid) for child in found]
        time.sleep(REST_S)
        return bool(found) and [cpu_ms(child.pid) for child in found] == before

    wait_until(rests, PATIENCE_S)


def _imported(modules: str) -> Cost:
    """The imports alone, without the interpreter's own start."""
    code = (
        "import time; wall, cpu = time.perf_counter(), time.process_time()\n"
        f"import {modules}\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return Cost(wall * 1e3, cpu * 1e3)


def heaviest(modules: str, rounds: int) -> list[tuple[float, str]]:
    """Milliseconds that each module takes by itself, the least of some imports, the heaviest first."""
    least: dict[str, float] = {}
    for _ in range(rounds):
        command = [sys.executable, "-X", "importtime", "-c", f"import {modules}"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        for microseconds, name in _IMPORT.findall(told):
            least[name] = min(least.get(name, float("inf")), int(microseconds) / 1e3)
    return sorted(((took, name) for name, took in least.items()), reverse=True)


def _figures(what: str, costs: list[Cost]) -> Iterator[Figure]:
    target = TARGETS.get(what, "")
    yield Figure(what=what, unit="ms", ours=tuple(cost.wall for cost in costs), target=target)
    yield Figure(what=f"... CPU: {what}", unit="ms", ours=tuple(cost.cpu for cost in costs))


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    """Show the figures, then the heaviest imports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=12, help="samples of each figure (default: %(default)s)"
    )
    parser.add_argument("--imports", type=int, default=12, help="how many to show (default: %(default)s)")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="as-") as name:
        os.environ["XDG_STATE_HOME"] = name
        show(startup(Path(name), options.rounds), console)
    for program, modules in {**PROGRAMS, "library": LIBRARY}.items():
        found = heaviest(modules, options.rounds)
        console.print(
            f"{program}: {len(found)} modules, {sum(took for took, _ in found):.0f} ms; the heaviest:"
        )
        console.print(*(f"{took:8.1f} ms  {name}" for took, name in found[: options.imports]), sep="\n")


if __name__ == "__main__":
    main()
