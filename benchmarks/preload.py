"""From a killed worker to a training that goes on: with `--preload`, with `--standby`, without, and torchrun.

Each worker notes when it got how far; a figure is the time until the last of them got there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import torchrun
from benchmarks.figures import Figure
from tests.support.fleet import Controller, agentctl, fleet, write_script
from tests.support.waiting import wait_until

PATIENCE_S = 120.0
WORKERS = 2

# The step of a training that each restart does first. `torch` may be there already.
TRAINING = (
    "import time; notes = {'line': time.time_ns()}",
    "import json, os, pathlib, sys",
    "import torch",
    "import torch.distributed as dist",
    "notes['torch'] = time.time_ns()",
    "dist.init_process_group('gloo')",
    "notes['group'] = time.time_ns()",
    "value = torch.ones(1)",
    "dist.all_reduce(value)",
    "notes['reduce'] = time.time_ns()",
    "assert value.item() == dist.get_world_size()",
    "note = pathlib.Path(sys.argv[1], os.environ['RANK'] + '-' + str(os.getpid()))",
    "note.with_suffix('.part').write_text(json.dumps(notes)); note.with_suffix('.part').rename(note)",
    "time.sleep(3600)",
)
WAYS: Final[Mapping[str, tuple[str, ...]]] = {
    "preload": ("--preload", "torch,torch.distributed"),
    "preload and standby": ("--preload", "torch,torch.distributed", "--standby"),
    "no preload": (),
}
STEPS: Final[Mapping[str, tuple[str, str]]] = {
    "line": ("all workers' first lines", ""),
    "torch": ("`import torch` done in all workers", "80"),
    "group": ("gloo's init_process_group done in all workers", ""),
    "reduce": ("the first all_reduce done in all workers", "250"),
}
"""What a step is called, and how soon it is to be reached with preload, in milliseconds."""

Samples = dict[str, list[float]]


def preload(root: Path, rounds: int) -> list[Figure]:
    """The figures of two ranks on one node; none without torch."""
    if importlib.util.find_spec("torch") is None:
        return []
    script = str(write_script(root / "training.py", *TRAINING))
    theirs = _theirs(root, script, max(3, rounds // 3)) if torchrun.available() else {}
    figures = []
    for way, flags in WAYS.items():
        with _ours(root, way, script, flags) as notes:
            samples = _kills(notes, rounds)
        figures += [
            Figure(
                what=f"killed to {STEPS[step][0]}, {way}",
                unit="ms",
                ours=tuple(samples[step]),
                torchrun=tuple(theirs.get(step, ())),
                target=STEPS[step][1] if way != "no preload" else "",
            )
            for step in STEPS
        ]
    return figures


@contextlib.contextmanager
def _ours(root: Path, way: str, script: str, flags: Sequence[str]) -> Iterator[Path]:
    folder = root / way.replace(" ", "-")
    notes = folder / "notes"
    notes.mkdir(parents=True)
    with fleet(folder, "n") as made:
        where = ("--nodes", made.targets())
        run = ("run", *where, "--nproc-per-node", str(WORKERS), "--max-restarts", "1000", "--run-id", "b")
        with Controller(*run, *flags, script, str(notes), root=folder):
            yield notes
            agentctl("stop", "b", *where, "--stop-grace", "1")


def _theirs(root: Path, script: str, rounds: int) -> Samples:
    notes = root / "torchrun-notes"
    notes.mkdir()
    flags = (f"--nproc-per-node={WORKERS}", "--max-restarts=1000", script, str(notes))
    with torchrun.group(1, root, *flags):
        try:
            return _kills(notes, rounds)
        except AssertionError as hung:
            # It has been seen: a rank of a new round then waits for one that never comes.
            print(f"torchrun's workers did not come back, its column stays empty: {hung}", file=sys.stderr)
            return {}


def _kills(notes: Path, rounds: int) -> Samples:
    """Kill the worker of rank 0 again and again: for each step the milliseconds until all had done it."""
    samples: Samples = {step: [] for step in STEPS}
    known = _fresh(notes, set())
    for _ in range(rounds):
        seen = {path.name for path in notes.iterdir()}
        victim = next(name for name in known if name.startswith("0-"))
        killed = time.time_ns()
        os.kill(int(victim.partition("-")[2]), signal.SIGKILL)
        known = _fresh(notes, seen)
        found = [json.loads((notes / name).read_text()) for name in known]
        for step, times in samples.items():
            times.append((max(each[step] for each in found) - killed) / 1e6)
    return samples


def _fresh(notes: Path, old: set[str]) -> set[str]:
    def found() -> set[str]:
        names = {path.name for path in notes.iterdir() if not path.suffix} - old
        return names if len(names) == WORKERS else set()

    return wait_until(found, PATIENCE_S, what="the notes of all workers")
