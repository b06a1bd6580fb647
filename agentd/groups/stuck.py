"""Processes that SIGKILL did not end: watched until they are gone; as long the node is UNKILLABLE.

What the kernel holds dies the moment it is let go. The first look that finds nothing of a group takes it out
of the book; with the last one the node is well again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from agentd.core.conditions import Condition
from agentd.groups.background import Background
from agentd.groups.conditions import Conditions
from agentd.procs import tree
from agentd.procs.tree import Marks, StuckProcess
from agentd.quickdata import dataclass

LOOK_S = 0.5
"""Between two looks; each reads /proc once, in a thread."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckGroup:
    """What is left of one worker group."""

    run_id: str
    incarnation: int
    role: str
    marks: Marks
    processes: tuple[StuckProcess, ...]

    @property
    def sentence(self) -> str:
        """For people: whose they are, and where they hang."""
        return f"run {self.run_id}, role {self.role}: {tree.unkillable(self.processes)}"


class StuckBook:
    """The node's unkillable processes. Used on the event loop."""

    def __init__(
        self, conditions: Conditions, sweeps: Executor, gone: Callable[[StuckGroup], object]
    ) -> None:
        """`sweeps` runs what reads /proc. `gone(group)` is called when nothing of it is left."""
        self._conditions = conditions
        self._sweeps = sweeps
        self._gone = gone
        self._groups: dict[str, StuckGroup] = {}  # by token
        self._watches = Background()

    def add(self, group: StuckGroup) -> None:
        """Watch what is left of a group until it is gone."""
        self._groups[group.marks.token] = group
        self._show()
        self._watches.begin(self._watch(group), f"stuck {group.run_id}")

    async def close(self) -> None:
        """Watch no more."""
        await self._watches.close()

    async def _watch(self, group: StuckGroup) -> None:
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(self._sweeps, _still_there, group.marks):
            await asyncio.sleep(LOOK_S)
        del self._groups[group.marks.token]
        facts = {"run_id": group.run_id, "incarnation": group.incarnation, "role": group.role}
        _log.warning("what SIGKILL did not end is gone at last", extra=facts)
        self._show()
        self._gone(group)

    def _show(self) -> None:
        sentence = "; ".join(group.sentence for group in self._groups.values())
        self._conditions.put(Condition.UNKILLABLE, sentence)


def _still_there(marks: Marks) -> bool:
    # Killed again each time: something may have been forked just before the kernel let go.
    return bool(tree.end_group(marks, grace_s=0.0, kill_bound_s=0.0))
