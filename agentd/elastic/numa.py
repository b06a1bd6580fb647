"""Binding workers to the CPUs near their GPU. Decisions over a `Topology`; only `bound` changes a thread.

The modes and options are torch's (`torch.numa.binding`), whose own objects serve here too. Unlike there no
numactl is needed, workers without GPU are spread over the nodes, and a GPU is looked for where the worker's
CUDA_VISIBLE_DEVICES points.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from agentd.elastic.topology import Gpu, Topology, read_topology
from agentd.quickdata import dataclass

__all__ = [
    "AffinityMode",
    "NumaBindingError",
    "NumaOptions",
    "OptionsLike",
    "bound",
    "cpus_for",
    "visible_gpus",
]

log = logging.getLogger(__name__)


class AffinityMode(str, enum.Enum):
    """What share of the machine a worker gets, beginning at the NUMA node of its GPU."""

    NODE = "node"
    """All CPUs of the node. The one to take when in doubt."""
    SOCKET = "socket"
    """All CPUs of the node's socket, which may hold several nodes."""
    EXCLUSIVE = "exclusive"
    """An even share of the node's physical cores, nobody else's."""
    CORE_COMPLEX = "core-complex"
    """CPUs of the node that share a last-level cache; each worker gets others while there are enough."""


@dataclass(frozen=True)
class NumaOptions:
    """How workers are bound."""

    affinity_mode: AffinityMode
    """Which CPUs a worker gets."""
    should_fall_back_if_binding_fails: bool = False
    """Start a worker unbound, with a warning, rather than not at all."""


class NumaBindingError(RuntimeError):
    """A worker cannot be bound as asked."""

    def __init__(self, local_rank: int, cause: str) -> None:
        self.local_rank = local_rank
        """Which of the node's workers it is."""
        self.cause = cause
        """Why, for people."""
        super().__init__(
            f"local rank {local_rank} cannot be bound to CPUs: {cause}. Choose another affinity mode, or set "
            "should_fall_back_if_binding_fails to start it unbound"
        )


class OptionsLike(Protocol):
    """This module's options or torch's."""

    @property
    def affinity_mode(self) -> Any:
        """An `AffinityMode`, another enum with its values, or such a value."""

    @property
    def should_fall_back_if_binding_fails(self) -> bool:
        """Whether a worker that cannot be bound starts unbound."""


@contextlib.contextmanager
def bound(
    options: OptionsLike | None,
    local_rank: int,
    env: Mapping[str, str],
    *,
    topology: Callable[[], Topology] | None = None,
) -> Iterator[frozenset[int] | None]:
    """Bind the calling thread to the CPUs of a worker, so that a process it starts inside inherits them.

    `env` is the worker's: CUDA_VISIBLE_DEVICES, LOCAL_RANK and LOCAL_WORLD_SIZE of it count. Gives the CPUs,
    or `None` for a worker that stays unbound. The thread's own CPUs come back in every case. Raises
    `NumaBindingError` unless the options say to fall back. A process that another one forks (a fork server,
    a zygote) inherits nothing from this thread.
    """
    if options is None:
        yield None
        return
    former = os.sched_getaffinity(0)
    cpus = _bind(options, local_rank, env, topology or _machine, former)
    try:
        yield cpus
    finally:
        if cpus is not None:
            _restore(former)


def cpus_for(
    mode: AffinityMode, topology: Topology, local_rank: int, env: Mapping[str, str], allowed: Iterable[int]
) -> frozenset[int]:
    """The CPUs of a worker out of those `allowed`, never none. Raises `NumaBindingError`."""
    place = _place(topology, local_rank, env, frozenset(allowed))
    try:
        cpus = _SHARES[mode](topology, place)
    except _Impossible as impossible:
        raise NumaBindingError(local_rank, str(impossible)) from None
    return cpus


def visible_gpus(topology: Topology, env: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The machine's GPUs that CUDA_VISIBLE_DEVICES of `env` leaves, in its order; all if it is unset.

    As in CUDA, entries are numbers or beginnings of UUIDs, and the first that names nothing ends the list.
    A slice of a GPU (MIG) counts as one whose node is unknown.
    """
    named = env.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return topology.gpus
    found = []
    for entry in (part.strip() for part in named.split(",")):
        gpu = _gpu_named(entry, topology.gpus)
        if gpu is None:
            break
        found.append(gpu)
    return tuple(found)


# --- where a worker belongs


@dataclass(frozen=True, slots=True)
class _Place:
    """The node of a worker, and which of the sharers of that node it is."""

    node: int
    position: int
    sharers: int
    allowed: frozenset[int]

    def cpus(self, topology: Topology) -> frozenset[int]:
        return topology.nodes[self.node] & self.allowed


class _Impossible(Exception):
    """Why a share cannot be given."""


def _place(topology: Topology, local_rank: int, env: Mapping[str, str], allowed: frozenset[int]) -> _Place:
    """By the worker's GPU; without one, or where its node is unknown, local ranks take nodes in turn."""
    visible = visible_gpus(topology, env)
    if visible:
        # With virtual local ranks each worker sees one GPU as number 0, and its LOCAL_RANK says so.
        index = _count(env, "LOCAL_RANK", local_rank)
        if index >= len(visible):
            raise NumaBindingError(local_rank, f"it has no GPU: {len(visible)} are visible to it")
        gpu = visible[index]
        if gpu.node is not None and topology.nodes[gpu.node] & allowed:
            # One that sees fewer GPUs than there are workers shares with those of the others, too.
            world = visible if len(visible) >= _count(env, "LOCAL_WORLD_SIZE", 1) else topology.gpus
            near = [other for other in world if other.node == gpu.node]
            return _Place(gpu.node, near.index(gpu), len(near), allowed)
    return _spread(topology, local_rank, _count(env, "LOCAL_WORLD_SIZE", local_rank + 1), allowed)


def _spread(topology: Topology, local_rank: int, workers: int, allowed: frozenset[int]) -> _Place:
    nodes = [node for node, cpus in topology.nodes.items() if cpus & allowed]
    if not nodes:
        raise NumaBindingError(
            local_rank, "the kernel tells of no NUMA node with a CPU that may be used here"
        )
    turn, which = divmod(local_rank, len(nodes))
    sharers = len(range(which, max(workers, local_rank + 1), len(nodes)))
    return _Place(nodes[which], turn, sharers, allowed)


def _gpu_named(entry: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    if entry.isdigit():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    if entry.startswith("MIG-"):
        return Gpu("", entry, None)
    matching = [gpu for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    return int(text) if text.isdigit() else default


# --- shares of a node


def _whole_node(topology: Topology, place: _Place) -> frozenset[int]:
    return place.cpus(topology)


def _whole_socket(topology: Topology, place: _Place) -> frozenset[int]:
    def sockets(node: int) -> set[int]:
        return {topology.sockets[cpu] for cpu in topology.nodes[node] if cpu in topology.sockets}

    own = sockets(place.node)
    together = [cpus for node, cpus in topology.nodes.items() if node == place.node or sockets(node) & own]
    return frozenset().union(*together) & place.allowed


def _share_of_cores(topology: Topology, place: _Place) -> frozenset[int]:
    cores = sorted(_groups(place.cpus(topology), topology.cores), key=min)
    each, extra = divmod(len(cores), place.sharers)
    if each < 1:
        raise _Impossible(
            f"NUMA node {place.node} has {len(cores)} physical cores to use for {place.sharers} sharers"
        )
    # The first ones take what cannot be divided.
    first = place.position * each + min(place.position, extra)
    last = first + each + (place.position < extra)
    return frozenset().union(*cores[first:last])


def _core_complex(topology: Topology, place: _Place) -> frozenset[int]:
    complexes = sorted(
        _groups(place.cpus(topology), topology.caches), key=lambda cpus: (-len(cpus), min(cpus))
    )
    return complexes[place.position % len(complexes)]


_SHARES: Mapping[AffinityMode, Callable[[Topology, _Place], frozenset[int]]] = {
    AffinityMode.NODE: _whole_node,
    AffinityMode.SOCKET: _whole_socket,
    AffinityMode.EXCLUSIVE: _share_of_cores,
    AffinityMode.CORE_COMPLEX: _core_complex,
}


def _groups(cpus: frozenset[int], together: Mapping[int, frozenset[int]]) -> set[frozenset[int]]:
    """The CPUs in groups that belong together, without those that may not be used."""
    return {together.get(cpu, frozenset({cpu})) & cpus for cpu in cpus}


# --- the thread


@functools.cache
def _machine() -> Topology:
    """Read once: many workers are started, and NVML takes its time."""
    return read_topology()


def _bind(
    options: OptionsLike,
    local_rank: int,
    env: Mapping[str, str],
    topology: Callable[[], Topology],
    allowed: Iterable[int],
) -> frozenset[int] | None:
    try:
        cpus = cpus_for(_mode(options, local_rank), topology(), local_rank, env, allowed)
        _set_affinity(local_rank, cpus)
    except NumaBindingError as error:
        if not options.should_fall_back_if_binding_fails:
            raise
        log.warning("local rank %d starts unbound: %s", local_rank, error.cause)
        return None
    return cpus


def _set_affinity(local_rank: int, cpus: frozenset[int]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise NumaBindingError(local_rank, f"the kernel refuses the CPUs {sorted(cpus)}: {error}") from error


def _mode(options: OptionsLike, local_rank: int) -> AffinityMode:
    """torch's modes are other objects with the same values."""
    value = getattr(options.affinity_mode, "value", options.affinity_mode)
    try:
        return AffinityMode(value)
    except ValueError:
        known = ", ".join(mode.value for mode in AffinityMode)
        raise NumaBindingError(local_rank, f"there is no affinity mode {value!r}, only {known}") from None


def _restore(former: Iterable[int]) -> None:
    try:
        os.sched_setaffinity(0, former)
    except OSError as error:  # a cpuset took all of them away meanwhile
        log.warning("this thread stays on the CPUs of a worker: %s", error)
