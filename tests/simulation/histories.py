"""Random histories of a run: who takes part, under which rules, what goes wrong when. A seed is a history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from agentd.api.types import Command, RendezvousSpec, RoleSpec, RunSpec
from tests.simulation.node import RUN

HEARTBEAT, LEASE, REATTACH = 1.5, 4.0, 7.0
SHORT = 0.8
"""A node may be away or frozen that long without being taken for lost."""
BEGIN = 2.0
LONG = 8.0
GENTLE = ("kill agentd", "freeze agentd", "cut", "reset", "slow disk", "hand over", "freeze hub", "kill hub")
"""Faults that give no reason for another round, if they are short and one after the other."""
HARSH = (
    *GENTLE,
    "worker fails", "worker fails", "kill host", "freeze host", "freeze machine",
    "lose power", "leave", "terminate", "succeed", "slow stop", "unkillable", "all fail",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong at a node, `at` seconds from the beginning, for so long."""

    at: float
    kind: str
    node: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All that decides what happens in a world."""

    seed: int
    gentle: bool
    spec: RunSpec
    hub: str
    starts: tuple[tuple[str, float], ...]
    """Each node, and when its part of the run begins."""
    delay: float
    spike: float
    disk_latency: float
    faults: tuple[Fault, ...]

    @property
    def calm_at(self) -> float:
        """When nothing goes wrong any more."""
        late = max((at for _, at in self.starts), default=0.0)
        return max((fault.at + fault.seconds for fault in self.faults), default=BEGIN) + late + 0.5


def make_history(seed: int) -> History:
    """The history of a seed."""
    random = Random(seed)
    gentle = seed % 4 == 0
    names = tuple("abcd"[: random.choice((2, 2, 2, 2, 3, 3, 4))])
    hub = random.choice(("h", "a"))
    spec = _spec(random, names)
    starts = [(name, 0.0) for name in names]
    if not gentle and len(names) > 2 and random.random() < 0.3:
        starts[-1] = (names[-1], random.uniform(1.0, 4.0))
    return History(
        seed=seed,
        gentle=gentle,
        spec=spec,
        hub=hub,
        starts=tuple(starts),
        delay=random.choice((0.002, 0.02, 0.1)),
        spike=random.choice((0.05, 0.5)),
        disk_latency=random.choice((0.0, 0.0, 0.02)),
        faults=tuple(_gentle_faults(random, names, hub) if gentle else _harsh_faults(random, names, hub)),
    )


def _spec(random: Random, names: tuple[str, ...]) -> RunSpec:
    roles = ("default",) if random.random() < 0.85 else ("one", "two")
    count = len(names) * len(roles)
    return RunSpec(
        run_id=RUN,
        roles=tuple(RoleSpec(role=role, command=Command(entrypoint="train.py")) for role in roles),
        nodes=names if random.random() < 0.7 else (),
        rendezvous=RendezvousSpec(
            min_members=random.randint(1, count),
            max_members=count,
            heartbeat=HEARTBEAT,
            lease=LEASE,
            reattach_window=REATTACH,
            join_timeout=25.0,
            last_call=random.choice((0.5, 2.0)),
            hub_timeout=40.0,
        ),
        max_restarts=random.randint(0, 3),
        max_membership_changes=random.choice((None, None, None, 2)),
        stop_grace=random.choice((1.0, 2.0)),
    )


def _gentle_faults(random: Random, names: tuple[str, ...], hub: str) -> Iterator[Fault]:
    at = BEGIN + random.random()
    for _ in range(random.choice((1, 1, 2))):
        kind = random.choice(GENTLE)
        on_hub = kind.endswith("hub")
        node = hub if on_hub else random.choice(names)
        seconds = random.uniform(0.1, SHORT)
        if kind == "freeze hub":
            seconds = random.uniform(0.1, LONG)
        elif node == hub and kind == "freeze agentd":
            kind = "freeze hub"
        yield Fault(round(at, 3), kind, node, round(seconds, 3))
        at += seconds + LEASE + random.uniform(2.0, 3.0)


def _harsh_faults(random: Random, names: tuple[str, ...], hub: str) -> Iterator[Fault]:
    at = random.uniform(0.0, BEGIN)
    for _ in range(random.choice((1, 2, 2, 3, 3, 5))):
        kind = random.choice(HARSH)
        node = hub if kind.endswith("hub") else random.choice(names)
        seconds = random.choice((random.uniform(0.0, SHORT), random.uniform(SHORT, LONG)))
        if kind in ("terminate", "unkillable", "leave") and random.random() < 0.6:
            kind = "worker fails"
        yield Fault(round(at, 3), kind, node, round(seconds, 3))
        if kind == "slow disk" and random.random() < 0.5:
            # What the journal has not taken is what a dead agentd costs.
            killed_at = at + random.uniform(0.0, 3.0)
            yield Fault(round(killed_at, 3), "kill agentd", node, round(random.uniform(0.1, 5.0), 3))
        at += random.choice((0.0, random.uniform(0.0, 0.3), random.uniform(0.0, 3.0)))


def smaller(history: History) -> Iterator[History]:
    """Histories with one fault less, or a shorter one."""
    for index in range(len(history.faults)):
        rest = history.faults[:index] + history.faults[index + 1 :]
        yield replace(history, faults=rest)
