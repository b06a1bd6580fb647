"""How long each fault of docs/failures.md stays unnoticed, with the default settings.

A fault has the time at which it was made, its discovery the time that the journal of a node has for it; one
clock for both, as all nodes are on this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from agentd.api.history import Event, EventKind
from agentd.api.types import Phase
from agentd_client import AgentClient
from agentd_client import Fleet as Client
from benchmarks.figures import Figure
from tests.support.fleet import Fleet, agentctl, fleet, write_script
from tests.support.waiting import wait_until

PATIENCE_S = 90.0
RUN = "detect"
NODES = ("a", "b", "c")
HANG_LIMIT_S = 0.3
# Hangs in each round, in a step that has a limit; notes when the limit runs out.
HANGS = (
    "import os, pathlib, sys, time",
    "from agentd.elastic import timer",
    "timer.configure(timer.FileTimerClient(os.environ['TORCHELASTIC_TIMER_FILE']))",
    f"over = time.time() + {HANG_LIMIT_S}",
    f"with timer.expires(after={HANG_LIMIT_S}):",
    "    note = pathlib.Path(sys.argv[1], os.environ['AGENTD_ROUND'])",
    "    note.with_suffix('.part').write_text(str(over)); note.with_suffix('.part').rename(note)",
    "    time.sleep(3600)",
)


def detection(root: Path, rounds: int) -> list[Figure]:
    """All faults, one after the other. Those that take a lease each are made a third as often."""
    few = max(3, rounds // 3)
    figures = []
    with _running(root / "signals") as made:
        figures += _workers_killed(made, rounds)
        figures.append(_hosts_killed(made, rounds))
    with _running(root / "daemons") as made:
        figures.append(_hubs_killed(made, few))
        figures += _daemons_frozen(made, few)
    figures.append(_workers_hang(root / "hangs", rounds))
    return figures


@contextlib.contextmanager
def _running(root: Path) -> Iterator[Fleet]:
    """Three nodes and a run of a worker on each that goes on with two of them; the hub is node a."""
    script = str(write_script(root / "sleep.py", "import time", "time.sleep(3600)"))
    with fleet(root, *NODES) as made:
        _ctl(
            *("run", "--detach", "--nodes", made.targets(), "--run-id", RUN, "--nnodes", "2:3"),
            *("--max-restarts", "100000", script),
        )
        _wait_for_round(made, members=3)
        yield made
        _ctl("stop", RUN, "--nodes", made.targets(), "--stop-grace", "1")


def _workers_killed(made: Fleet, rounds: int) -> list[Figure]:
    here, elsewhere = [], []
    for _ in range(rounds):
        marks = {name: _newest(made, name) for name in NODES}
        pid = next(worker["pid"] for worker in made.workers(RUN) if worker["node"] == "b")
        killed = _kill(int(pid))
        here.append(_noticed(made, "b", marks["b"], EventKind.WORKERS_FAILED, killed))
        elsewhere += [
            _noticed(made, name, marks[name], EventKind.ROUND_STOPPED, killed) for name in ("a", "c")
        ]
        _wait_for_round(made, members=3)
    return [
        Figure(what="worker killed: its agentd knows", unit="ms", ours=tuple(here), target="<= 5"),
        Figure(what="worker killed: the other nodes know", unit="ms", ours=tuple(elsewhere)),
    ]


def _hosts_killed(made: Fleet, rounds: int) -> Figure:
    samples = []
    for _ in range(rounds):
        mark = _newest(made, "b")
        node = next(node for node in made.status(RUN)["nodes"] if node["node_id"] == "b")
        killed = _kill(int(node["groups"][0]["host_pid"]))
        samples.append(_noticed(made, "b", mark, EventKind.HOST_ENDED, killed))
        _wait_for_round(made, members=3)
    return Figure(what="host killed: its agentd knows", unit="ms", ours=tuple(samples), target="<= 50")


def _hubs_killed(made: Fleet, rounds: int) -> Figure:
    """The hub's agentd is killed and begins again; no round ends for it."""
    samples = []
    for _ in range(rounds):
        marks = {name: _newest(made, name) for name in ("b", "c")}
        killed = time.time()
        made["a"].kill()
        samples += [_noticed(made, name, mark, EventKind.HUB_LOST, killed) for name, mark in marks.items()]
        made.again("a")
        for name, mark in marks.items():
            _event(made, name, mark, EventKind.HUB_FOUND)
    return Figure(
        what="hub's agentd killed: its members know", unit="ms", ours=tuple(samples), target="<= 50"
    )


def _daemons_frozen(made: Fleet, rounds: int) -> list[Figure]:
    """A frozen agentd is silence, as a pulled cable is; thawed, it takes part in the next round."""
    lost, back = [], []
    for _ in range(rounds):
        mark = _newest(made, "b")
        frozen = time.time()
        os.kill(made["c"].pid, signal.SIGSTOP)
        try:
            lost.append(_noticed(made, "b", mark, EventKind.ROUND_STOPPED, frozen))
            _wait_for_round(made, members=2)
        finally:
            thawed = time.time()
            os.kill(made["c"].pid, signal.SIGCONT)
        back.append((_wait_for_round(made, members=3) - thawed) * 1e3)
    return [
        Figure(
            what="agentd frozen or cut off: the others stop the round",
            unit="ms",
            ours=tuple(lost),
            target="<= 5000, the lease",
        ),
        Figure(what="... and back: all workers of the next round run", unit="ms", ours=tuple(back)),
    ]


def _workers_hang(root: Path, rounds: int) -> Figure:
    notes = root / "notes"
    notes.mkdir(parents=True)
    script = str(write_script(root / "hang.py", *HANGS))
    samples = []
    with fleet(root, "a") as made:
        _ctl(
            *("run", "--detach", "--nodes", made.targets(), "--run-id", RUN, "--max-restarts", "100000"),
            *("--env", "TORCHELASTIC_ENABLE_FILE_TIMER=1", "--env", f"PYTHONPATH={Path.cwd()}"),
            *(script, str(notes)),
        )
        mark = 0
        for round_ in range(1, rounds + 1):
            failed = _event(made, "a", mark, EventKind.WORKERS_FAILED)
            mark = failed.id
            samples.append((failed.time - float((notes / str(round_)).read_text())) * 1e3)
        _ctl("stop", RUN, "--nodes", made.targets(), "--stop-grace", "1")
    return Figure(what="worker hangs: killed and known, after its limit", unit="ms", ours=tuple(samples))


def _kill(pid: int) -> float:
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    return killed


def _noticed(made: Fleet, name: str, mark: int, kind: EventKind, since: float) -> float:
    """Milliseconds until the node's journal has such an event, newer than the one of id `mark`."""
    return (_event(made, name, mark, kind).time - since) * 1e3


def _event(made: Fleet, name: str, mark: int, kind: EventKind) -> Event:
    with AgentClient(made[name].target) as client:

        def find() -> list[Event]:
            told = client.list_events(RUN, after_id=mark)
            return [event for event in told if event.kind == kind]

        return wait_until(find, PATIENCE_S)[0]


def _newest(made: Fleet, name: str) -> int:
    with AgentClient(made[name].target) as client:
        return max((event.id for event in client.list_events(RUN, tail=1)), default=0)


def _wait_for_round(made: Fleet, *, members: int) -> float:
    """Until a round of so many members has its workers; when the last of them was started."""

    def started() -> list[float]:
        report = fleet_client.find(RUN).status().status
        groups = [group for node in report.nodes for group in node.groups]
        running = [group for group in groups if group.phase is Phase.RUNNING and group.round == report.round]
        whole = report.phase is Phase.RUNNING and len(running) == members
        return [worker.started_at for group in running for worker in group.workers] if whole else []

    with Client(made.targets().split(",")) as fleet_client:
        return max(wait_until(started, PATIENCE_S))


def _ctl(*arguments: str) -> None:
    done = agentctl(*arguments, timeout=PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"agentctl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
