"""What goes wrong, when and where, and what runs meanwhile: a function of the seed, to be had again.

Which process a fault hits is decided by `pick` among those that are there when it strikes; all else is here.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace


class Kind(str, enum.Enum):
    """A way in which a part of the fleet fails."""

    WORKER_KILL = "worker killed"
    WORKER_FREEZE = "worker stopped"
    HOST_KILL = "host killed"
    HOST_FREEZE = "host stopped"
    ZYGOTE_KILL = "zygote or blank killed"
    ZYGOTE_FREEZE = "zygote or blank stopped"
    AGENTD_KILL = "agentd killed"
    AGENTD_FREEZE = "agentd stopped"
    HANDOVER = "agentd hands over"
    HANDOVER_STRUCK = "agentd hands over while something else dies"
    NODE_LOSS = "node lost"
    PARTITION = "cable pulled"
    CUT = "one way cut"
    DISK_FULL = "disk full"
    NO_INODES = "no inodes"
    NO_FILES = "no descriptors"
    NO_FORKS = "no processes"
    DRAIN = "node drained"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Weight:
    """How often a fault comes beside others, and how many seconds it lasts."""

    weight: int
    shortest: float = 0.0
    longest: float = 0.0


# Most last shorter than the lease or the window to come back, some longer.
KINDS: Mapping[Kind, Weight] = {
    Kind.WORKER_KILL: Weight(40),
    Kind.WORKER_FREEZE: Weight(10, 0.2, 3.0),
    Kind.HOST_KILL: Weight(16),
    Kind.HOST_FREEZE: Weight(8, 0.2, 4.0),
    Kind.ZYGOTE_KILL: Weight(8),
    Kind.ZYGOTE_FREEZE: Weight(4, 0.2, 4.0),
    Kind.AGENTD_KILL: Weight(8, 0.0, 5.0),
    Kind.AGENTD_FREEZE: Weight(8, 0.2, 4.0),
    Kind.HANDOVER: Weight(3, 0.0, 1.0),
    Kind.HANDOVER_STRUCK: Weight(4, 0.0, 1.0),
    Kind.NODE_LOSS: Weight(3, 0.0, 5.0),
    Kind.PARTITION: Weight(7, 0.2, 5.0),
    Kind.CUT: Weight(4, 0.2, 4.0),
    Kind.DISK_FULL: Weight(4, 0.2, 4.0),
    Kind.NO_INODES: Weight(3, 0.2, 4.0),
    Kind.NO_FILES: Weight(3, 0.2, 4.0),
    Kind.NO_FORKS: Weight(3, 0.2, 4.0),
    Kind.DRAIN: Weight(4, 0.5, 4.0),
}


LEAVE_NODE_WELL = frozenset(
    {
        Kind.WORKER_KILL,
        Kind.WORKER_FREEZE,
        Kind.HOST_KILL,
        Kind.HOST_FREEZE,
        Kind.ZYGOTE_KILL,
        Kind.ZYGOTE_FREEZE,
        Kind.DRAIN,
    }
)
"""Faults that leave the node as a whole well."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    number: int
    at: float
    """Seconds after the storm began."""
    kind: Kind
    node: str
    peer: str
    """The other end, where there is one."""
    lasts: float
    pick: float
    """Within [0, 1): which of the processes that it may hit."""

    def __str__(self) -> str:
        where = f"{self.node} -> {self.peer}" if self.kind is Kind.CUT else self.node
        lasts = f" for {self.lasts:.2f} s" if self.lasts else ""
        return f"#{self.number} at {self.at:.2f} s: {self.kind} on {where}{lasts} (pick {self.pick:.3f})"


class Manner(str, enum.Enum):
    """How workers behave."""

    POLITE = "polite"
    """Ends at SIGTERM."""
    STUBBORN = "stubborn"
    """Ignores SIGTERM."""
    FAMILY = "family"
    """Has children, one of them in a session of its own."""
    FAILING = "failing"
    """Rank 0 fails in the first rounds."""
    HOPELESS = "hopeless"
    """Rank 0 fails in every round."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Part:
    """A role of a run."""

    role: str
    nodes: tuple[str, ...]
    workers: int
    """On each node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run."""

    run_id: str
    hub: str
    nodes: tuple[str, ...]
    parts: tuple[Part, ...]
    min_members: int
    max_members: int
    """Fewer than all members: the others are spares."""
    work: float
    """Seconds a worker needs in one round."""
    manner: Manner
    max_restarts: int
    stop_after: float | None
    """Somebody ends it so many seconds after it began."""
    isolated_stop: bool
    """Its workers stop when their node is cut off."""
    leaver: str
    """A node that leaves the run after a while; empty: none."""
    careless: bool = False
    """Its caller does not look whether nodes are drained before it starts it."""
    lease: float | None = None
    """It ends when nobody has renewed it for so many seconds."""
    renewed_for: float = math.inf
    """So long its caller does, and then nothing but the lease may end it."""
    preload: bool = False
    standby: bool = False


ENDLESS_S = 1000.0
"""The work of a run that its lease has to end."""


@dataclass(frozen=True, slots=True)
class Forking:
    """How many of the runs have their workers forked."""

    share: float
    """Of all runs, those with `preload`."""
    standby: float
    """Of these, those with `standby`."""


FORKING: Mapping[str, Forking] = {
    "": Forking(1 / 3, 1 / 2),
    "0": Forking(0.0, 0.0),
    "1": Forking(1.0, 1 / 2),
    "standby": Forking(1.0, 1.0),
}
"""By the word that asks for it."""


def faults(
    seed: int, nodes: Sequence[str], rate: float, kinds: Sequence[Kind] = tuple(KINDS)
) -> Iterator[Fault]:
    """Faults without end, about `rate` a second."""
    draw = random.Random(f"faults {seed}")
    weights = [KINDS[kind].weight for kind in kinds]
    at, number = 0.0, 0
    while True:
        number += 1
        at += draw.expovariate(rate)
        (kind,) = draw.choices(kinds, weights)
        node, peer = draw.sample(nodes, 2)
        span = KINDS[kind].longest - KINDS[kind].shortest
        lasts = KINDS[kind].shortest + span * draw.random() ** 2
        yield Fault(number, at, kind, node, peer, lasts, draw.random())


def jobs(seed: int, nodes: Sequence[str], forking: Forking = FORKING[""]) -> Iterator[Job]:
    """Runs without end. Some last as long as a storm may, most are over soon."""
    draw, forked = random.Random(f"jobs {seed}"), random.Random(f"forked {seed}")
    number = 0
    while True:
        number += 1
        size = draw.randint(2, min(4, len(nodes)))
        taking_part = tuple(draw.sample(nodes, size))
        hub = taking_part[0] if draw.random() < 0.8 else draw.choice(nodes)
        manner = draw.choice(tuple(Manner))
        parts = _parts(draw, taking_part)
        members = sum(len(part.nodes) for part in parts)
        fewest = draw.randint(1, members)
        job = Job(
            run_id=f"run{number}",
            hub=hub,
            nodes=taking_part,
            parts=parts,
            min_members=fewest,
            max_members=draw.randint(fewest, members) if draw.random() < 0.3 else members,
            work=draw.uniform(0.5, 4.0),
            manner=manner,
            max_restarts=draw.randint(0, 3) if manner is Manner.HOPELESS else draw.choice((2, 50, 50)),
            stop_after=draw.uniform(0.5, 10.0) if draw.random() < 0.3 else None,
            isolated_stop=draw.random() < 0.3,
            leaver=draw.choice(taking_part) if draw.random() < 0.2 else "",
            careless=draw.random() < 0.2,
            lease=draw.uniform(1.5, 3.0) if draw.random() < 0.25 else None,
        )
        if forked.random() < forking.share:
            job = replace(job, preload=True, standby=forked.random() < forking.standby)
        abandoned = draw.random() < 0.4 and job.lease is not None
        renewed_for = draw.uniform(0.0, 6.0)
        yield replace(job, work=ENDLESS_S, renewed_for=renewed_for) if abandoned else job


def _parts(draw: random.Random, nodes: tuple[str, ...]) -> tuple[Part, ...]:
    """One role everywhere, a second beside it on some nodes, or each role on nodes of its own."""
    shape = draw.choice(("one", "one", "beside", "apart"))
    if shape == "one":
        return (Part("default", nodes, draw.randint(1, 2)),)
    some = draw.randint(1, len(nodes) - 1)
    first = nodes if shape == "beside" else nodes[some:]
    return (Part("trainer", first, draw.randint(1, 2)), Part("reader", nodes[:some], 1))
