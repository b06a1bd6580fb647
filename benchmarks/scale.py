"""Rendezvous of many agents: a real agentd is the hub, its members are simulated in one other process."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from agentd.api.types import Command, RendezvousSpec, RoleSpec, RunRequest, RunSpec
from agentd_client import AgentClient
from benchmarks import torchrun
from benchmarks.figures import Figure
from benchmarks.members import PATIENCE_S, name_of
from tests.support.fleet import Node, agentd

KIB: Final = 1024
TARGETS: Final[Mapping[int, str]] = {
    64: "<= 250",
    96: "<= 400",
    128: "<= 500",
    1000: "<= 2000",
    4000: "<= 10000",
}
CROWDED: Final = 4000
CROWDED_LEASE_S: Final = 30.0
"""So many have a machine each where they are in earnest. Here they share two cores with their hub, where one
may well say nothing for the five seconds of a default lease."""
TORCHRUN_SIZES: Final = (64,)
"""More are not borne: 96 agents take it half a minute, 128 five."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """A run of simulated members from the first dial to the end."""

    took: Mapping[str, float]
    """Seconds, and processor seconds, of each step, see `benchmarks.members`."""
    bytes_per_member: float
    """By how much the hub has grown for each of them, with all their connections."""


@dataclass(slots=True)
class _Samples:
    lived: list[Lived] = field(default_factory=list)

    def of(self, step: str, factor: float = 1e3) -> tuple[float, ...]:
        return tuple(each.took[step] * factor for each in self.lived)


def sizes(full: bool) -> tuple[int, ...]:
    """How many agents meet; all of the targets take a minute more."""
    return tuple(TARGETS) if full else (64, 128, 1000)


def rendezvous(root: Path, sizes: Sequence[int], rounds: int) -> list[Figure]:
    """Join, restart and the hub's cost at each size. The large ones are lived through a few times only."""
    figures = []
    for count in sizes:
        samples = _Samples([one_run(root / f"{count}-{n}", count) for n in range(_repeats(count, rounds))])
        theirs = torchrun_agents(count) if torchrun.available() and count in TORCHRUN_SIZES else ()
        figures.append(
            Figure(
                what=f"rendezvous of {count:,} agents: first dial to the last one's place",
                unit="ms",
                ours=samples.of("join"),
                torchrun=theirs,
                target=TARGETS.get(count, ""),
            )
        )
        if count >= 1000:
            figures += _restart_and_cost(count, samples)
    return figures


def _restart_and_cost(count: int, samples: _Samples) -> list[Figure]:
    each = f"hub of {count:,} agents"
    return [
        Figure(what=f"{each}: one fails to all told to stop", unit="ms", ours=samples.of("again")),
        Figure(what=f"{each}: ... to the last one's next place", unit="ms", ours=samples.of("again1")),
        Figure(
            what=f"{each}: processor time of a join, each",
            unit="ms",
            ours=samples.of("join_hub_cpu", 1e3 / count),
        ),
        Figure(
            what=f"{each}: resident memory, each",
            unit="KiB",
            ours=tuple(lived.bytes_per_member / KIB for lived in samples.lived),
        ),
    ]


def _repeats(count: int, rounds: int) -> int:
    return max(1, min(rounds, 1000 // count * 2 or 1)) if count >= 500 else max(3, rounds // 2)


def one_run(root: Path, count: int) -> Lived:
    """A run of so many members on an agentd of its own."""
    with agentd(root, "hub") as node:
        empty = psutil.Process(node.pid).memory_info().rss
        took = members(node, count)
    return Lived(took=took, bytes_per_member=(took["hub_resident"] - empty) / count)


def members(node: Node, count: int) -> dict[str, float]:
    """Have so many members live through a run on this hub."""
    run_id = f"scale-{uuid.uuid4().hex[:8]}"
    spec = RunSpec(
        run_id=run_id,
        roles=(RoleSpec(command=Command(entrypoint="train.py")),),
        nodes=tuple(map(name_of, range(count))),
        max_restarts=1,
        rendezvous=RendezvousSpec(lease=CROWDED_LEASE_S) if count >= CROWDED else RendezvousSpec(),
    )
    with AgentClient(node.target) as client:
        start = client.run(RunRequest(request_id=run_id, spec=spec))
    found: dict[str, float] = json.loads(
        _output(
            "benchmarks.members",
            node.target,
            str(node.pid),
            run_id,
            str(start.status.incarnation),
            str(count),
        )
    )
    return found


def torchrun_agents(count: int) -> tuple[float, ...]:
    """Milliseconds for as many handlers of torch's dynamic rendezvous, each on a thread of one process."""
    return (float(_output("benchmarks.torch_agents", str(count))) * 1e3,)


def _output(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout
