"""Who still descends from this process, where it adopts what its descendants leave: by the kernel's lists.

The kernel keeps a list of each process' children. To read them costs as much as the family is big, while
`tree.find` reads every process of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TypeAlias

from agentd.procs import prctl, procfs
from agentd.procs.procfs import PROC, ProcessStat
from agentd.procs.spare import NO_ANSWER, asked

Judge: TypeAlias = "Callable[[ProcessStat], bool]"


def is_known() -> bool:
    """Whether `living` can be asked here: this process adopts, and the kernel lets it read its list."""
    return children(os.getpid()) is not None and prctl.is_subreaper()


def living(ended: Collection[int], spared: Judge = lambda _stat: False) -> list[ProcessStat]:
    """The living descendants, without the `spared` ones and what is below them. None found: there are none.

    `ended`: children that had ended before and are not reaped. For a process with one thread, which meanwhile
    starts and reaps nothing; raises `OSError` where it cannot be told.

    Whoever a dying process leaves is put at the end of its adopter's list, and only this process takes
    anybody off its own. A living descendant is therefore below one on that list who lives, or below one who
    has died since the list was read; then it is read again.
    """
    known = set(ended)
    while True:
        found, died = _look(known, spared)
        if found or not died:
            return found
        known |= died


def children(pid: int) -> list[int] | None:
    """Its children, living and dead; `None`: it is gone, or the kernel keeps no lists. Raises `OSError`."""
    found: list[int] = []
    try:
        for task in asked(lambda: os.listdir(f"{PROC}/{pid}/task")):
            path = f"{PROC}/{pid}/task/{task}/children"
            found.extend(map(int, asked(lambda path=path: procfs.content(path)).split()))  # type: ignore[misc]
    except OSError as error:
        if error.errno in NO_ANSWER:
            raise
        return None
    return found


def _look(known: Collection[int], spared: Judge) -> tuple[list[ProcessStat], set[int]]:
    found: list[ProcessStat] = []
    died: set[int] = set()
    own = os.getpid()
    todo = [(pid, own) for pid in children(own) or ()]
    while todo:
        pid, parent = todo.pop()
        stat = None if pid in known else procfs.read_stat(pid)
        if stat is None or spared(stat):
            continue
        if not procfs.is_finished(stat):
            found.append(stat)
            todo += [(child, pid) for child in children(pid) or ()]
        elif parent == own:
            died.add(pid)
    return found, died
