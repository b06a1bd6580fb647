"""Workers that the kernel refuses are tried again; one that it still refuses is a failure with a cause."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agentd.elastic.multiprocessing import RoundLogsSpecs, context, subprocess_context
from agentd.elastic.multiprocessing.subprocess_context import SubprocessContext
from agentd.procs.spawn import Child, Order, SpawnError, spawn_all

Starter = Callable[[Sequence[Order]], Iterator[Child]]


def refusing(times: float, granted: float = float("inf")) -> Starter:
    """A kernel that starts nothing the first times, and no more than so many at a time."""
    left = [times]

    def start(orders: Sequence[Order]) -> Iterator[Child]:
        for number, order in enumerate(orders):
            if left[0] > 0 or number >= granted:
                left[0] -= 1
                raise SpawnError(errno.EAGAIN, order.argv[0], os.strerror(errno.EAGAIN))
            yield from spawn_all([order])

    return start


def group(tmp_path: Path, size: int = 2) -> SubprocessContext:
    envs = {rank: {"AGENTD_ROUND": "1"} for rank in range(size)}
    args = {rank: ("-c", f"echo >> {tmp_path}/{rank}") for rank in range(size)}
    return SubprocessContext("workers", "/bin/sh", args, envs, RoundLogsSpecs(str(tmp_path / "logs")))


@pytest.mark.parametrize(("times", "granted"), [(3, 100), (0, 1), (1, 2)])
def test_a_refusal_that_passes_costs_nothing_and_starts_nobody_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, granted: int
) -> None:
    monkeypatch.setattr(subprocess_context, "spawn_all", refusing(times, granted))
    monkeypatch.setattr(context, "START_TOGETHER", 3)
    workers = group(tmp_path, size=5)
    try:
        workers.start()
        result = workers.wait(timeout=60)
        assert result is not None
        assert not result.is_failed()
    finally:
        workers.close()
    assert [Path(tmp_path, str(rank)).read_text() for rank in range(5)] == ["\n"] * 5


def test_a_refusal_that_lasts_is_raised_with_its_cause_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "START_PATIENCE_S", 0.3)
    monkeypatch.setattr(subprocess_context, "spawn_all", refusing(float("inf")))
    workers = group(tmp_path)
    try:
        with pytest.raises(SpawnError, match="Resource temporarily unavailable"):
            workers.start()
    finally:
        workers.close()


def test_a_program_that_is_not_there_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def missing(orders: Sequence[Order]) -> Iterator[Child]:
        tried.append(orders[0].argv[0])
        raise SpawnError(errno.ENOENT, orders[0].argv[0], os.strerror(errno.ENOENT))

    monkeypatch.setattr(subprocess_context, "spawn_all", missing)
    workers = group(tmp_path)
    try:
        with pytest.raises(SpawnError):
            workers.start()
    finally:
        workers.close()
    assert tried == ["/bin/sh"]
