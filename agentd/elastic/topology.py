"""Which CPUs lie near which memory and which GPU, as the kernel tells. Reads, decides nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from agentd.quickdata import dataclass

__all__ = ["Gpu", "Topology", "cpu_set", "read_topology"]

_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"
_PCI = "sys/bus/pci/devices"
_NVIDIA = "proc/driver/nvidia/gpus"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of NVIDIA's."""

    address: str
    """On the PCI bus, as /sys writes it: "0000:dc:00.0"."""
    uuid: str
    """As CUDA_VISIBLE_DEVICES may name it: "GPU-..."; empty if unknown."""
    node: int | None
    """The NUMA node it hangs on; `None` if the kernel does not know."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine."""

    nodes: Mapping[int, frozenset[int]]
    """NUMA node -> its CPUs; nodes of memory alone are left out."""
    sockets: Mapping[int, int] = field(default_factory=dict)
    """CPU -> its socket, where known."""
    cores: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """CPU -> the CPUs of its physical core, itself included."""
    caches: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """CPU -> the CPUs that share its last-level data cache, itself included."""
    gpus: tuple[Gpu, ...] = ()
    """In the order of their PCI addresses, which is NVML's and that of CUDA_DEVICE_ORDER=PCI_BUS_ID."""


def read_topology(root: str = "/") -> Topology:
    """The machine whose /sys and /proc are below `root`. NVML, which knows no root, is asked about "/" only.

    What cannot be read is missing from the answer.
    """
    nodes = dict(sorted(_nodes(root)))
    cpus = sorted(set().union(*nodes.values()))
    addresses = _nvml_gpus() if root == "/" else None
    return Topology(
        nodes=nodes,
        sockets={
            cpu: socket for cpu in cpus if (socket := _number(f"{_cpu(root, cpu)}/physical_package_id")) >= 0
        },
        cores={cpu: _siblings(root, cpu) for cpu in cpus},
        caches={cpu: _last_cache(root, cpu) for cpu in cpus},
        gpus=tuple(
            Gpu(address, uuid, _node_of(root, address, nodes))
            for address, uuid in sorted(_proc_gpus(root) if addresses is None else addresses)
        ),
    )


def cpu_set(text: str) -> frozenset[int]:
    """The numbers of a list as the kernel writes it: "0-3,8"."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _nodes(root: str) -> Iterator[tuple[int, frozenset[int]]]:
    for name in _names(os.path.join(root, _NODE)):
        if re.fullmatch(r"node\d+", name):
            cpus = cpu_set(_text(os.path.join(root, _NODE, name, "cpulist")))
            if cpus:
                yield int(name[4:]), cpus


def _siblings(root: str, cpu: int) -> frozenset[int]:
    return cpu_set(_text(f"{_cpu(root, cpu)}/thread_siblings_list")) | {cpu}


def _last_cache(root: str, cpu: int) -> frozenset[int]:
    folder = os.path.join(root, _CPU, f"cpu{cpu}", "cache")
    highest, shared = -1, frozenset({cpu})
    for name in _names(folder):
        index = os.path.join(folder, name)
        level = _number(f"{index}/level")
        if level > highest and _text(f"{index}/type") != "Instruction":
            highest, shared = level, cpu_set(_text(f"{index}/shared_cpu_list")) | {cpu}
    return shared


def _cpu(root: str, cpu: int) -> str:
    return os.path.join(root, _CPU, f"cpu{cpu}", "topology")


def _node_of(root: str, address: str, nodes: Mapping[int, frozenset[int]]) -> int | None:
    node = _number(os.path.join(root, _PCI, address, "numa_node"))
    if node in nodes:
        return node
    # Machines with one node often say -1.
    return next(iter(nodes)) if len(nodes) == 1 else None


def _nvml_gpus() -> list[tuple[str, str]] | None:
    """(PCI address, UUID) of each GPU by NVML; `None` if it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            (
                pci_address(_string(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
                _string(pynvml.nvmlDeviceGetUUID(handle)),
            )
            for handle in handles
        ]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _string(value: Any) -> str:
    """Old releases of the binding give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def pci_address(text: str) -> str:
    """As /sys writes it, "0000:dc:00.0"; NVML's domain has eight digits and capitals."""
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _proc_gpus(root: str) -> list[tuple[str, str]]:
    """The same by the driver's folder."""
    found = []
    for address in _names(os.path.join(root, _NVIDIA)):
        text = _text(os.path.join(root, _NVIDIA, address, "information"))
        uuid = re.search(r"GPU UUID:\s*(\S+)", text)
        found.append((address.lower(), uuid[1] if uuid else ""))
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(path: str) -> int:
    """-1 for what is not there or no number."""
    text = _text(path)
    return int(text) if text.isdigit() else -1
