"""Where the time of one failure goes: a worker is killed, and the stages until all workers' first line again.

The stages come from what the product itself writes down with a time: the hosts' reports, the journals' events
and the workers' notes. All nodes are on this machine, so one clock has timed them all.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentd.api.history import Event, EventKind
from agentd.host.reports import read_reports
from agentd.host.wire import Exited, Ready, ReportFrame, Started
from agentd_client import AgentClient
from benchmarks.figures import Figure
from tests.support.fleet import Fleet, agentctl, fleet, write_script
from tests.support.waiting import wait_until

PATIENCE_S = 60.0
RUN = "path"

STAGES = (
    "the host has seen it",
    "its agentd has journalled it",
    "the hub's node has journalled its stop",
    "all nodes have journalled the stop",
    "nothing is left anywhere",
    "all nodes have journalled the next round",
    "all workers are exec'ed",
    "first line in all workers",
)

# First of all a worker notes when it started, then what it took to come so far; then it waits to be killed.
NOTE_START = (
    "import time; began, used = time.time(), time.process_time()",
    "import os, pathlib, sys",
    "name = f\"{os.environ['AGENTD_ROUND']}-{os.environ['RANK']}-{os.getpid()}\"",
    "note = pathlib.Path(sys.argv[1], name)",
    "note.with_suffix('.part').write_text(f'{began} {used}'); note.with_suffix('.part').rename(note)",
    "time.sleep(3600)",
)


@dataclass(frozen=True, slots=True)
class Note:
    """What a worker wrote down."""

    round: int
    rank: int
    pid: int
    began: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Restart:
    """One failure: when each stage was reached, and the processor time that it took; all in milliseconds."""

    reached: tuple[float, ...]
    """Since the kill, one for each of `STAGES`."""
    agentd_cpu: float
    """Of all agentds together."""
    host_cpu: float
    """Of all hosts together, their part of the forks included."""
    worker_cpu: float
    """Of one worker until its first line, the slowest."""


def paths(root: Path, rounds: int) -> list[Figure]:
    """On one node, two and eight; of eight each has one worker, for the sake of small machines."""
    sizes = ((1, 2), (2, 2), (8, 1))
    return [figure for nodes, workers in sizes for figure in path(root / str(nodes), nodes, workers, rounds)]


def path(root: Path, nodes: int, workers: int, rounds: int) -> list[Figure]:
    """Kill a worker on the node farthest from the hub again and again."""
    samples = restarts(root, nodes, workers, rounds)
    where = f"{nodes} node(s) x {workers}"
    figures = [
        Figure(
            what=f"worker killed, {where}: {stage}",
            unit="ms",
            ours=tuple(sample.reached[number] for sample in samples),
            target=_TARGETS.get((nodes, stage), ""),
        )
        for number, stage in enumerate(STAGES)
    ]
    used = {
        "all agentds": tuple(sample.agentd_cpu for sample in samples),
        "all hosts": tuple(sample.host_cpu for sample in samples),
        "one worker to its first line": tuple(sample.worker_cpu for sample in samples),
    }
    return figures + [Figure(what=f"... CPU of {who}", unit="ms", ours=cpu) for who, cpu in used.items()]


_TARGETS = {
    (1, STAGES[-1]): "<= 40",
    (2, STAGES[-1]): "<= 80",
    (8, STAGES[-1]): "<= 150",
    (1, STAGES[1]): "<= 5",
    (2, STAGES[2]): "p99 <= 10",
}


def restarts(root: Path, nodes: int, workers: int, rounds: int) -> list[Restart]:
    """The samples of one run on so many nodes, each with so many workers."""
    notes = root / "notes"
    notes.mkdir(parents=True)
    script = str(write_script(root / "note.py", *NOTE_START))
    with fleet(root, *(f"n{number}" for number in range(nodes))) as made:
        # Detached: a client that follows the run would take its part of the processors.
        ctl(
            *("run", "--detach", "--nodes", made.targets(), "--nproc-per-node", str(workers)),
            *("--run-id", RUN, "--max-restarts", "100000", script, str(notes)),
        )
        watched = _Watched(made, notes, nodes * workers)
        found = [watched.kill_one() for _ in range(rounds)]
        ctl("stop", RUN, "--nodes", made.targets(), "--stop-grace", "1")
    return found


class _Watched:
    """A live run that is looked at from outside."""

    def __init__(self, made: Fleet, notes: Path, size: int) -> None:
        self._made = made
        self._notes = notes
        self._size = size
        self._running = self._wait_for_round(1)
        groups = [group for node in made.status(RUN)["nodes"] for group in node["groups"]]
        self._hosts = [int(group["host_pid"]) for group in groups]
        self._agentds = [made[name].pid for name in made.nodes]
        self._folders = [
            next((made[name].state_dir / "runs").glob("*/*/*/host.jsonl")).parent for name in made.nodes
        ]

    def kill_one(self) -> Restart:
        """Kill the worker of the last rank, and gather what became of it."""
        round_ = self._running[0].round
        marks = {name: self._newest(name) for name in self._made.nodes}
        victim = max(self._running, key=lambda note: note.rank)
        agentds, hosts = cpu_ms(self._agentds), cpu_ms(self._hosts)
        killed = time.time()
        os.kill(victim.pid, signal.SIGKILL)
        self._running = self._wait_for_round(round_ + 1)
        agentds, hosts = cpu_ms(self._agentds) - agentds, cpu_ms(self._hosts) - hosts
        reached = self._stages(round_, victim.pid, marks)
        return Restart(
            reached=tuple((moment - killed) * 1e3 for moment in reached),
            agentd_cpu=agentds,
            host_cpu=hosts,
            worker_cpu=max(note.cpu_s for note in self._running) * 1e3,
        )

    def _stages(self, round_: int, pid: int, marks: dict[str, int]) -> tuple[float, ...]:
        names = list(self._made.nodes)
        told = [self._events(name, marks[name], round_ + 1) for name in names]
        reports = [read_reports(str(folder), 0) for folder in self._folders]
        seen = _time(reports[-1], lambda report: isinstance(report, Exited) and report.pid == pid)
        gone = [_time(each, lambda r: isinstance(r, Ready) and r.round == round_) for each in reports]
        started = [
            worker.started_at
            for each in reports
            for report in each
            if isinstance(report, Started) and report.round == round_ + 1
            for worker in report.workers
        ]
        stops = [_moment(events, EventKind.ROUND_STOPPED, round_) for events in told]
        return (
            seen,
            _moment(told[-1], EventKind.WORKERS_FAILED, round_),
            stops[0],
            max(stops),
            max(gone),
            max(_moment(events, EventKind.ROUND_FORMED, round_ + 1) for events in told),
            max(started),
            max(note.began for note in self._running),
        )

    def _events(self, name: str, mark: int, round_: int) -> list[Event]:
        """What happened on the node since, once it knows that the round's workers run."""
        with AgentClient(self._made[name].target) as client:

            def whole() -> list[Event]:
                told = list(client.list_events(RUN, after_id=mark))
                started = [e for e in told if e.kind == EventKind.WORKERS_STARTED and e.round == round_]
                return told if started else []

            return wait_until(whole, PATIENCE_S)

    def _newest(self, name: str) -> int:
        with AgentClient(self._made[name].target) as client:
            return max((event.id for event in client.list_events(RUN, tail=1)), default=0)

    def _wait_for_round(self, round_: int) -> list[Note]:
        def whole() -> list[Note]:
            names = [path for path in self._notes.glob(f"{round_}-*-*") if not path.suffix]
            return [_note(path) for path in names] if len(names) == self._size else []

        return wait_until(whole, PATIENCE_S)


def _note(path: Path) -> Note:
    round_, rank, pid = map(int, path.name.split("-"))
    began, cpu_s = map(float, path.read_text().split())
    return Note(round_, rank, pid, began, cpu_s)


def cpu_ms(pids: list[int]) -> float:
    """What these processes have used of the processors, in milliseconds. The kernel's clock of a process."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids) * 1e3  # noqa: TID251


def _time(reports: Sequence[ReportFrame], wanted: Callable[[ReportFrame], bool]) -> float:
    """When the newest report of that kind was made."""
    return next(report.time for report in reversed(reports) if wanted(report))


def _moment(events: Sequence[Event], kind: EventKind, round_: int) -> float:
    return next(event.time for event in events if event.kind == kind and event.round == round_)


def ctl(*arguments: str) -> None:
    """Run `agentctl`, which must succeed."""
    done = agentctl(*arguments, timeout=PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"agentctl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
