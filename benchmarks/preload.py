"""From a killed worker to a training that goes on: with `--preload`, with `--standby`, without, and torchrun.

Each worker notes when it got how far; a figure is the time until the last of them got there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import time
from collections import defaultdict
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
    "who = (os.environ[name] for name in ('TORCHELASTIC_RESTART_COUNT', 'RANK'))",
    "note = pathlib.Path(sys.argv[1], '-'.join((*who, str(os.getpid()))))",
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

# torchrun keeps one store for all rounds. In it gloo finds the address of a rank that is dead, is refused
# there, and fails the round: several restarts for one death. With this it has a store for each round.
OWN_STORES: Final = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

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
    with torchrun.group(1, root, *flags, env=OWN_STORES):
        return _kills(notes, rounds)


def _kills(notes: Path, rounds: int) -> Samples:
    """Kill the worker of rank 0 again and again: for each step the milliseconds until all had done it."""
    samples: Samples = {step: [] for step in STEPS}
    known = _complete(notes, -1)
    for _ in range(rounds):
        victim = next(path for path in known if _numbers(path)[1] == 0)
        former, _, pid = _numbers(victim)
        killed = time.time_ns()
        os.kill(pid, signal.SIGKILL)
        known = _complete(notes, former)
        found = [json.loads(path.read_text()) for path in known]
        for step, times in samples.items():
            times.append((max(each[step] for each in found) - killed) / 1e6)
    return samples


def _complete(notes: Path, former: int) -> list[Path]:
    """The notes of the first restart after `former` that all workers have come through."""

    def found() -> list[Path]:
        by_restart: dict[int, list[Path]] = defaultdict(list)
        for path in notes.iterdir():
            if not path.suffix and _numbers(path)[0] > former:
                by_restart[_numbers(path)[0]].append(path)
        return next((paths for _, paths in sorted(by_restart.items()) if len(paths) == WORKERS), [])

    return wait_until(found, PATIENCE_S, what="the notes of all workers")


def _numbers(note: Path) -> tuple[int, int, int]:
    """Which restart, rank and process wrote it."""
    restart, rank, pid = map(int, note.name.split("-"))
    return restart, rank, pid
