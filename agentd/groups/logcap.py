"""Keeps each worker's output within its cap: the oldest part of a file is given back to the disk.

Files are looked at once in a while, in a thread: the newest round's of each live run at every look, all
others once after they were complete. A file takes at most the cap and what is written between two looks.
Only what lies below the state directory is ever cut: a log folder of the user's own is the user's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Protocol

from agentd.api.types import LogStream
from agentd.core.conditions import Condition
from agentd.core.ranks import named
from agentd.groups import layout
from agentd.groups.board import RunKey
from agentd.groups.logcursor import WorkerLog, newest_round
from agentd.procs.holes import cannot_punch, first_data, punch
from agentd.procs.pool import Pool
from agentd.quickdata import dataclass

INTERVAL_S = 10.0
"""Between two looks: two calls to the kernel for each worker."""
KEPT_SHARE = 0.75
"""Of the cap, what is left of a file that is cut: else every look would cut a little."""

_BLOCK = 512
_log = logging.getLogger(__name__)


class Runs(Protocol):
    """What the registry does for it."""

    def live_logs(self) -> Mapping[RunKey, tuple[WorkerLog, ...]]: ...

    def note(self, key: RunKey, condition: Condition, sentence: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """What one look did to one file, or found done to it."""

    removed: int
    """Bytes that this look gave back."""
    begins: int
    """Where the file begins now. 0: at its beginning, or it was emptied."""


class LogCap:
    """Runs beside the registry, from its start to its end."""

    def __init__(self, state_dir: str, cap: int, runs: Runs) -> None:
        """`cap`: bytes of one file. 0: files grow as they like."""
        self._root = os.path.join(state_dir, layout.RUNS, "")
        self._cap = cap
        self._runs = runs
        self._thread = Pool(1, thread_name_prefix="agentd-logcap")
        self._former: Mapping[RunKey, tuple[WorkerLog, ...]] = {}
        self._settled: dict[RunKey, set[str]] = {}
        """Folders of rounds that are over and were looked at since."""
        self._cut: dict[RunKey, set[int]] = {}
        """The ranks whose output was cut."""

    async def keep(self) -> None:
        """Run until cancelled."""
        try:
            while self._cap:
                try:
                    await self.step()
                except Exception:  # noqa: BLE001 - whatever it is, a disk that fills unseen is worse
                    _log.exception("the size of logs cannot be looked after")
                await asyncio.sleep(INTERVAL_S)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def step(self) -> None:
        """One look at the files that may have grown."""
        live = self._runs.live_logs()
        # What has ended since the last look grows no more: it is looked at once again.
        over = {key: logs for key, logs in self._former.items() if key not in live}
        for key, logs in (*live.items(), *over.items()):
            newest, settled = newest_round(logs), self._settled.setdefault(key, set())
            due = [log for log in logs if log.directory not in settled]
            cut = await asyncio.get_running_loop().run_in_executor(self._thread, self._look, due)
            settled.update(log.directory for log in due if log.round < newest)
            self._tell(key, cut)
        for key in over:
            self._settled.pop(key, None)
            self._cut.pop(key, None)
        self._former = live

    def _tell(self, key: RunKey, cut: Iterable[WorkerLog]) -> None:
        ranks = self._cut.setdefault(key, set())
        before = len(ranks)
        ranks.update(log.rank for log in cut)
        if len(ranks) > before:
            self._runs.note(
                key,
                Condition.LOGS_CUT,
                f"the oldest output of {named(ranks)} was removed: "
                f"{self._cap} bytes of each file are kept (logs.cap)",
            )

    def _look(self, logs: Iterable[WorkerLog]) -> list[WorkerLog]:
        """Cut what is too long; answers whose output has lost something, now or before."""
        found = []
        for log in logs:
            if log.directory.startswith(self._root):
                cuts = [self._held(f"{log.directory}/{stream.value}.log") for stream in LogStream]
                if any(cut and (cut.removed or cut.begins) for cut in cuts):
                    found.append(log)
        return found

    def _held(self, path: str) -> Cut | None:
        try:
            if os.lstat(path).st_size <= self._cap:
                return None
            cut = hold(path, self._cap)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _log.warning("a log cannot be cut", extra={"path": path, "problem": str(error)})
            return None
        if cut.removed:
            _log.info("a log was cut", extra={"path": path, "removed": cut.removed, "begins": cut.begins})
        return cut


def hold(path: str, cap: int) -> Cut:
    """Give back the oldest part of a file that takes more than `cap`. Raises `OSError`."""
    # Never through a link, and never waiting: what a worker has made of its file is its own affair.
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        begins = first_data(fd, 0)
        taken = status.st_size - begins
        if not stat.S_ISREG(status.st_mode) or min(taken, status.st_blocks * _BLOCK) <= cap:
            return Cut(0, begins)
        try:
            end = punch(fd, status.st_size - int(cap * KEPT_SHARE))
        except OSError as error:
            if not cannot_punch(error):
                raise
            os.ftruncate(fd, 0)
            return Cut(status.st_size, 0)
        return Cut(max(0, end - begins), end)
    finally:
        os.close(fd)
