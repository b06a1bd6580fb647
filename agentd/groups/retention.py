"""Forgets ended runs, their logs and their history, when they are old or take too much.

The disk is read and cleared in a thread of its own, some runs a step. Nothing outside the state directory is
ever removed, nothing of a run that lives, and nothing of one whose row in the journal cannot be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from agentd.api.types import NAME
from agentd.core.retention import KEPT_AT_LEAST, EndedRun, Policy, to_forget
from agentd.groups import layout
from agentd.groups.board import RunKey
from agentd.groups.database import reading
from agentd.groups.schema import NewerSchema
from agentd.procs.pool import Pool
from agentd.quickdata import dataclass
from agentd.v1 import run_pb2

INTERVAL_S = 600.0
"""Between two looks at what there is."""
PAUSE_S = 1.0
"""Between two steps while there is something to forget."""
RUNS_A_STEP = 20

_BLOCK = 512

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Runs(Protocol):
    """What the registry does for it."""

    async def forget(self, key: RunKey, remove: Callable[[], Awaitable[None]]) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is of all runs."""

    ended: tuple[EndedRun, ...] = ()
    others: int = 0
    """Bytes of live runs, of folders nobody knows, and of the journal."""
    strangers: tuple[EndedRun, ...] = ()
    """Folders of runs that the journal does not know, as ended when they were last written."""


@dataclass(slots=True)
class _Measured:
    size: int = 0
    changed_at: float = 0.0


class Retention:
    """Runs beside the registry, from its start to its end."""

    def __init__(
        self, state_dir: str, policy: Policy, runs: Runs, now: Callable[[], float] = time.time
    ) -> None:
        """`now`: the time of day as far as it is believed."""
        self._root = Path(state_dir)
        self._policy = policy
        self._runs = runs
        self._now = now
        self._thread = Pool(1, thread_name_prefix="agentd-retention")
        self._sizes: dict[RunKey, int] = {}  # of ended runs, which grow no more
        self._too_much = False

    async def keep(self) -> None:
        """Forget what is to be forgotten, again and again, until cancelled."""
        try:
            while True:
                try:
                    more = await self.step()
                except (OSError, sqlite3.Error, NewerSchema) as error:
                    _log.warning("ended runs cannot be looked through", extra={"problem": str(error)})
                    more = False
                except Exception:  # noqa: BLE001 - whatever it is, a disk that fills unseen is worse
                    _log.exception("ended runs cannot be looked through")
                    more = False
                await asyncio.sleep(PAUSE_S if more else INTERVAL_S)
        finally:
            self.close()

    def close(self) -> None:
        """Forget nothing more. What is being removed is left as it is, for the next agentd."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def step(self) -> bool:
        """Forget some runs; tells whether there are more to forget."""
        await self._in_thread(self._remove_old_journals)
        found = await self._in_thread(self._look)
        now = self._now()
        due = to_forget(found.ended, others=found.others, now=now, policy=self._policy)
        # Strangers go by age alone: nobody knows what they were.
        oldest = max(self._policy.age, KEPT_AT_LEAST)
        due += tuple(run for run in found.strangers if now - run.ended_at > oldest)
        forgotten = [run for run in due[:RUNS_A_STEP] if await self._forget(run)]
        if forgotten:
            freed = sum(run.size for run in forgotten)
            _log.info("ended runs forgotten", extra={"runs": len(forgotten), "bytes": freed})
        self._tell_if_too_much(found, due)
        return len(forgotten) == RUNS_A_STEP and len(due) > RUNS_A_STEP

    async def _forget(self, run: EndedRun) -> bool:
        key = run.run_id, run.incarnation

        async def remove() -> None:
            await self._in_thread(lambda: self._remove(key))

        try:
            return await self._runs.forget(key, remove)
        except OSError as error:
            facts = {"run_id": run.run_id, "incarnation": run.incarnation, "problem": str(error)}
            _log.warning("an ended run cannot be removed", extra=facts)
            return False

    def _look(self) -> Found:
        rows = self._rows()
        ended = {key: ended_at for key, ended_at in rows.items() if ended_at is not None}
        there = dict(self._measured(ended))
        self._sizes = {key: there[key].size for key in ended.keys() & there.keys()}
        runs = tuple(_ended_run(key, ended_at, self._sizes.get(key, 0)) for key, ended_at in ended.items())
        strangers = tuple(
            _ended_run(key, found.changed_at, found.size) for key, found in there.items() if key not in rows
        )
        others = sum(found.size for key, found in there.items() if key not in ended)
        return Found(ended=runs, others=others + self._journal_size(), strangers=strangers)

    def _rows(self) -> dict[RunKey, float | None]:
        """The runs of the journal and when they ended; None: they live, or nobody can tell."""
        with reading(self._root / layout.DATABASE) as db:
            db.text_factory = lambda text: text.decode(errors="replace")
            found = db.execute("SELECT run_id, incarnation, ended, ended_at, status FROM runs").fetchall()
        return {
            (str(run_id), incarnation): ended_at if ended and _is_readable(run_id, ended_at, status) else None
            for run_id, incarnation, ended, ended_at, status in found
        }

    def _measured(self, ended: Container[RunKey]) -> Iterator[tuple[RunKey, _Measured]]:
        """The folders of runs. One whose run has ended is measured once."""
        for run_folder in _folders(self._root / layout.RUNS):
            for folder in _folders(run_folder):
                if not folder.name.isdecimal() or not NAME.fullmatch(run_folder.name):
                    continue
                key = run_folder.name, int(folder.name)
                size = self._sizes.get(key) if key in ended else None
                yield key, _measure(folder) if size is None else _Measured(size)

    def _journal_size(self) -> int:
        sizes = (_measure(path).size for path in self._root.glob(f"{layout.DATABASE}*"))
        return sum(sizes)

    def _remove(self, key: RunKey) -> None:
        run_folder = self._root / layout.RUNS / key[0]
        if run_folder.is_symlink():
            return
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(run_folder / str(key[1]))
        with contextlib.suppress(OSError):
            run_folder.rmdir()  # another incarnation may be there

    def _remove_old_journals(self) -> None:
        """Damaged files that were kept aside."""
        for path in self._root.glob(f"{layout.DATABASE}.damaged-*"):
            with contextlib.suppress(FileNotFoundError):
                # The change of its links, not its content, is when it was put there.
                if self._now() - path.stat().st_ctime > self._policy.age:
                    path.unlink()

    def _tell_if_too_much(self, found: Found, due: Sequence[EndedRun]) -> None:
        left = found.others + sum(run.size for run in found.ended) - sum(run.size for run in due)
        too_much, self._too_much = self._too_much, left > self._policy.size
        if self._too_much and not too_much:
            facts = {"bytes": left, "retention_size": self._policy.size}
            _log.warning("live and just ended runs take more than retention.size", extra=facts)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _ended_run(key: RunKey, ended_at: float, size: int) -> EndedRun:
    return EndedRun(run_id=key[0], incarnation=key[1], ended_at=ended_at, size=size)


def _is_readable(run_id: object, ended_at: object, status: object) -> bool:
    if not isinstance(run_id, str) or not isinstance(ended_at, float) or not isinstance(status, bytes):
        return False
    if not NAME.fullmatch(run_id):
        return False
    try:
        run_pb2.RunStatus.FromString(status)
    except DecodeError:
        return False
    return True


def _folders(path: Path) -> list[Path]:
    """The folders in a folder; what a link leads to is elsewhere."""
    try:
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _measure(path: Path) -> _Measured:
    """What a file or a folder takes of the disk, holes not counted, and when it was last written."""
    found = _Measured()
    for name in _all_below(path):
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(name)
            found.size += status.st_blocks * _BLOCK
            found.changed_at = max(found.changed_at, status.st_mtime)
    return found


def _all_below(path: Path) -> Iterator[str]:
    yield str(path)
    for folder, folders, files in os.walk(path):
        yield from (os.path.join(folder, name) for name in (*folders, *files))
