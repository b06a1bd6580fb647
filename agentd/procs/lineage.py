"""From whom a process descends, by walking up: cheap where `tree.find` reads every process of the machine."""

from __future__ import annotations

from collections.abc import Iterator

from agentd.procs import procfs

MOST_STEPS = 1000
"""Deeper than any family; ends a walk through pids that change hands meanwhile."""


def lineage(pid: int) -> Iterator[int]:
    """The pid, its parent, and so on up; ends at the first that is gone."""
    for _ in range(MOST_STEPS):
        stat = procfs.read_stat(pid)
        if stat is None:
            return
        yield pid
        if stat.parent <= 0:
            return
        pid = stat.parent


def descends(pid: int, ancestor: int) -> bool:
    """Whether `pid` lives below `ancestor`, which does not descend from itself.

    A process whose parents have died descends from whoever adopted it: init, or a subreaper.
    """
    return pid != ancestor and ancestor in lineage(pid)
