"""What this machine has and how it is. May wait for a slow disk: call it off the event loop."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from agentd.procs.procfs import content
from agentd.quickdata import dataclass

_GPU_NODE = re.compile(r"nvidia\d+")
_KFD_NODES = "/sys/class/kfd/kfd/topology/nodes"
_LISTENING = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One look at the machine."""

    hostname: str
    cpus: int
    gpus: int
    memory_total_bytes: int
    memory_available_bytes: int
    load: tuple[float, float, float]
    disk_total_bytes: int
    disk_free_bytes: int
    resident_bytes: int
    """Of this process."""


def look(directory: str) -> NodeFacts:
    """The machine now, with the disk that holds `directory`. Raises `OSError`."""
    memory = _memory()
    disk = os.statvfs(directory)
    return NodeFacts(
        hostname=socket.gethostname(),
        cpus=cpu_count(),
        gpus=gpu_count(os.environ),
        memory_total_bytes=memory["MemTotal"],
        memory_available_bytes=memory["MemAvailable"],
        load=os.getloadavg(),
        disk_total_bytes=disk.f_blocks * disk.f_frsize,
        disk_free_bytes=disk.f_bavail * disk.f_frsize,
        resident_bytes=_resident_bytes(),
    )


def _memory() -> Mapping[str, int]:
    """/proc/meminfo, in bytes."""
    rows = (line.split() for line in content("/proc/meminfo").decode().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[2:] == ["kB"]}


def _resident_bytes() -> int:
    return int(content("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_count(environ: Mapping[str, str]) -> int:
    """GPUs a worker would see, found without a GPU library."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _nvidia_devices() or _amd_devices()
    names = [name.strip() for name in visible.split(",")]
    # CUDA ends the list at the first name that is none, so that "-1" hides all.
    valid = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))
    return min(valid, _nvidia_devices() or _amd_devices())


def _nvidia_devices() -> int:
    # Not /proc/driver/nvidia/gpus: in a container it shows the GPUs of the whole machine.
    try:
        return sum(1 for name in os.listdir("/dev") if _GPU_NODE.fullmatch(name))
    except OSError:
        return 0


def _amd_devices() -> int:
    """Compute nodes of the AMD driver that are no CPU, if its device is given to us."""
    if not os.access("/dev/kfd", os.R_OK | os.W_OK):
        return 0
    try:
        nodes = os.listdir(_KFD_NODES)
    except OSError:
        return 0
    return sum(1 for node in nodes if _read(f"{_KFD_NODES}/{node}/gpu_id").strip() not in ("", "0"))


def listener_pid(port: int) -> int | None:
    """The process that listens on a TCP port of this machine; None where we may not see it."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for name in os.listdir("/proc"):
        if name.isdigit() and _holds_socket(int(name), inodes):
            return int(name)
    return None


def _listening_inodes(port: int) -> frozenset[str]:
    rows = (_read("/proc/net/tcp") + _read("/proc/net/tcp6")).splitlines()
    fields = (row.split() for row in rows)
    return frozenset(
        row[9]
        for row in fields
        if len(row) > 9 and row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port
    )


def _holds_socket(pid: int, inodes: frozenset[str]) -> bool:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_link(f"/proc/{pid}/fd/{fd}") in wanted for fd in descriptors)


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 (hundreds of them, one look)
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
