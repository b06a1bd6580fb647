"""What can degrade a node, by name: what each condition stops, and the judgments that need no I/O. Pure."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Final

from agentd.quickdata import dataclass


class Condition(str, enum.Enum):
    """A name that GetNode and Status show. docs/conditions.md tells what each means and what to do."""

    JOURNAL_BEHIND = "JOURNAL_BEHIND"
    """Records wait for the disk."""
    JOURNAL_DAMAGED = "JOURNAL_DAMAGED"
    """Something of the journal's file could not be read."""
    STATE_DISK_FULL = "STATE_DISK_FULL"
    """The file system of the state directory has next to no room."""
    STATE_DISK_NO_INODES = "STATE_DISK_NO_INODES"
    """It takes no new file or folder."""
    STATE_DISK_READ_ONLY = "STATE_DISK_READ_ONLY"
    """It takes no write at all."""
    STATE_DISK_SLOW = "STATE_DISK_SLOW"
    """It does not answer in time."""
    STATE_DISK_UNUSABLE = "STATE_DISK_UNUSABLE"
    """It answers with an error, or the directory is gone."""
    TOO_MANY_FILES = "TOO_MANY_FILES"
    """agentd, or the machine, can open next to no file more."""
    CANNOT_FORK = "CANNOT_FORK"
    """The kernel refuses processes or threads: a limit of their number, or no memory."""
    UNKILLABLE = "UNKILLABLE"
    """Processes that SIGKILL did not end."""
    CLOCK_JUMPED = "CLOCK_JUMPED"
    """The clock was set far ahead; nothing is forgotten by age before it is believed."""
    LOGS_CUT = "LOGS_CUT"
    """Of a run: the oldest output of some worker was removed to keep it within its cap."""
    LOGS_NOT_KEPT = "LOGS_NOT_KEPT"
    """Of a run: its log folder could not be made, so that its workers' output is dropped."""
    PRELOAD_SKIPPED = "PRELOAD_SKIPPED"
    """Of a run: workers of its newest round were not forked from one that had imported their modules."""

    def __str__(self) -> str:
        return self.value


OF_RUNS: Final = frozenset({Condition.LOGS_CUT, Condition.LOGS_NOT_KEPT})
"""They degrade runs, not their node."""
REFUSES_RUNS: Final = frozenset(
    {
        Condition.STATE_DISK_FULL,
        Condition.STATE_DISK_NO_INODES,
        Condition.STATE_DISK_READ_ONLY,
        Condition.STATE_DISK_UNUSABLE,
        Condition.TOO_MANY_FILES,
        Condition.CANNOT_FORK,
    }
)
"""While one of these stands a new run is refused at once; JOURNAL_BEHIND refuses by its own error."""
NOT_READY: Final = REFUSES_RUNS | {Condition.JOURNAL_BEHIND, Condition.UNKILLABLE}
"""While one of these stands `agentd.v1.AgentService` is NOT_SERVING."""

NEXT_STEP: Final[Mapping[Condition, str]] = {
    Condition.STATE_DISK_FULL: "Free space there",
    Condition.STATE_DISK_NO_INODES: "Remove files there",
    Condition.STATE_DISK_READ_ONLY: "Look at dmesg, and mount it for writing again",
    Condition.STATE_DISK_UNUSABLE: "Look at dmesg and at the mounts of that machine",
    Condition.TOO_MANY_FILES: "Raise the limit of open files (LimitNOFILE=, `prlimit --nofile`)",
    Condition.CANNOT_FORK: "Raise the limit of processes (TasksMax=), or free memory",
}
"""For those that refuse runs: the beginning of the sentence after the cause."""

LOW_BYTES: Final = 16 << 20
LOW_SHARE: Final = 0.01
"""A file system counts as full with less than `LOW_BYTES` or this share of it, whichever is smaller."""
ENOUGH: Final = 2.0
"""It counts as full until it has so many times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """One look at a file system."""

    total: int
    free: int
    """Bytes that we may still write."""
    inodes: int
    """0: it has no fixed number of them."""
    inodes_free: int
    read_only: bool


def of_disk(
    facts: DiskFacts, directory: str, standing: Collection[Condition] = ()
) -> Mapping[Condition, str]:
    """What is wrong with the disk, a sentence each. `standing`: what was wrong at the last look."""
    if facts.read_only:
        return {Condition.STATE_DISK_READ_ONLY: f"the file system of {directory} is read-only"}
    found: dict[Condition, str] = {}
    low = min(LOW_BYTES, facts.total * LOW_SHARE)
    if facts.free < low * (ENOUGH if Condition.STATE_DISK_FULL in standing else 1.0):
        found[Condition.STATE_DISK_FULL] = (
            f"less than {_size(low)} of {_size(facts.total)} are free on the file system of {directory}"
        )
    if facts.inodes and facts.inodes_free < _few(facts.inodes, Condition.STATE_DISK_NO_INODES in standing):
        found[Condition.STATE_DISK_NO_INODES] = (
            f"the file system of {directory} takes no new file: its {facts.inodes} inodes are used"
        )
    return found


def _few(inodes: int, standing: bool) -> float:
    """A run on this node makes a dozen files and more for each worker."""
    return min(64, inodes * LOW_SHARE) * (ENOUGH if standing else 1.0)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
