"""The runs of this node: those that live here, the last that ended, and the newest snapshot of each.

Reading it never waits for anything. Used on the event loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping

from agentd.api.errors import RunNotFound
from agentd.api.types import TERMINAL, GroupRef, RunRef, RunStatus, StreamEnd, WorkerState
from agentd.core.conditions import Condition
from agentd.groups.background import Background
from agentd.groups.board import Board, RunKey
from agentd.groups.devices import DeviceBook
from agentd.groups.logs import WorkerLog
from agentd.groups.records import RunRow
from agentd.groups.run import NodeRun
from agentd.quickdata import dataclass

KEPT_ENDED = 256
"""Ended runs that Status still shows."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """What is kept of a run that is over here."""

    request_id: str
    logs: tuple[WorkerLog, ...]
    hub_address: str = ""
    """Empty: the hub was here."""


class Roster:
    """Who is here. What begins and ends is entered by those who do it; everybody else reads."""

    def __init__(self, node_id: str, first_revision: int, background: Background) -> None:
        """`first_revision` is above all that an earlier agentd gave out. `background` sees last words out."""
        self._node_id = node_id
        self._board = Board(node_id, first_revision)
        self._background = background
        self._live: dict[RunKey, NodeRun] = {}
        self._ended: OrderedDict[RunKey, _Ended] = OrderedDict()
        self.devices = DeviceBook()
        """What the live runs have of the node's devices."""

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus:
        """A run as it is now. Raises `RunNotFound`."""
        return self._board.get(run_id, incarnation)

    def newest(self, run_id: str) -> RunStatus | None:
        """The newest incarnation of a run as it is now; None if it is not known."""
        return self._board.newest(run_id)

    def runs(self, include_ended: bool) -> list[RunStatus]:
        """Every run, in an order that stays."""
        return self._board.all(include_ended)

    def watch(
        self, run_id: str, incarnation: int, after_revision: int
    ) -> AsyncIterator[RunStatus | StreamEnd]:
        """Snapshots as they come, see `Board.watch`."""
        return self._board.watch(run_id, incarnation, after_revision)

    async def wait_change(self, run_id: str, incarnation: int, revision: int) -> RunStatus:
        """The next snapshot of a run after `revision`."""
        return await self._board.wait_change(run_id, incarnation, revision)

    def on_change(self, listener: Callable[[str], object]) -> None:
        """Call `listener(run_id)` after each change of a run. It must not block."""
        self._board.on_change(listener)

    def worker_logs(self, run_id: str, incarnation: int) -> tuple[WorkerLog, ...]:
        """The log folders of a run here, over all rounds. Raises `RunNotFound`."""
        status = self._board.get(run_id, incarnation)
        key = status.run_id, status.incarnation
        run = self._live.get(key)
        return run.worker_logs() if run else self._ended[key].logs

    def live_logs(self) -> Mapping[RunKey, tuple[WorkerLog, ...]]:
        """The log folders of all runs that live here."""
        return {key: run.worker_logs() for key, run in self._live.items()}

    def note(self, key: RunKey, condition: Condition, sentence: str) -> None:
        """Something degrades a run here for good; one that has ended keeps its last status."""
        if run := self._live.get(key):
            run.note(condition, sentence)

    def group_refs(self) -> tuple[GroupRef, ...]:
        """Worker groups that have not ended."""
        return tuple(ref for run in self._live.values() for ref in run.group_refs())

    def runs_with_groups(self) -> tuple[RunKey, ...]:
        """The runs that have something here that is not over."""
        return tuple(key for key, run in self._live.items() if run.group_refs())

    def hub_of(self) -> tuple[RunRef, ...]:
        """Live runs whose hub is here."""
        return tuple(
            RunRef(run_id=run_id, incarnation=incarnation)
            for (run_id, incarnation), run in self._live.items()
            if run.part.hub_here
        )

    def health(self, run_id: str, role: str | None) -> bool:
        """Whether a run's groups here, or the one of a role, do their work. Raises `RunNotFound`."""
        status = self._board.get(run_id)
        own = (node for node in status.nodes if node.node_id == self._node_id)
        groups = [group for node in own for group in node.groups if role in (None, group.role)]
        if role is not None and not groups:
            raise RunNotFound(f"{run_id}/{role}", self._node_id)
        well = (WorkerState.HEALTHY, WorkerState.SUCCEEDED)
        live = status.phase not in TERMINAL
        return live and bool(groups) and all(group.worker_state in well for group in groups)

    # --- what begins and ends

    def live(self, key: RunKey) -> NodeRun | None:
        """The run, if it lives here."""
        return self._live.get(key)

    def enter(self, run: NodeRun) -> None:
        """It lives here from now on, perhaps once more."""
        self._ended.pop(run.part.key, None)
        self._live[run.part.key] = run

    def logs_of_ended(self, key: RunKey) -> tuple[WorkerLog, ...] | None:
        """The log folders that an ended run left; None if none is shown."""
        ended = self._ended.get(key)
        return ended.logs if ended else None

    def publish(self, run: NodeRun) -> None:
        """Show what a run tells of itself; one that is over leaves its place."""
        self._board.publish(run.status)
        if not run.is_live:
            self._retire(run)

    def show_ended(self, row: RunRow, status: RunStatus, logs: tuple[WorkerLog, ...]) -> None:
        """Show how a run ended of which the journal alone knows."""
        self._remember(
            (row.run_id, row.incarnation),
            _Ended(row.request_id, logs, hub_address=row.hub_address),
        )
        self._board.publish(status)

    def _retire(self, run: NodeRun) -> None:
        """Keep little of a run that is over, and of old ones nothing."""
        key = run.part.key
        self._live.pop(key, None)
        self.devices.release(run.part.spec.run_id)
        if run.conclusion is not None:
            self._background.keep(run.conclusion)
        self._remember(key, _Ended(run.part.request_id, run.worker_logs(), run.part.hub_address))

    def _remember(self, key: RunKey, ended: _Ended) -> None:
        self._ended[key] = ended
        while len(self._ended) > KEPT_ENDED:
            oldest, _ = self._ended.popitem(last=False)
            self._board.forget(oldest)
