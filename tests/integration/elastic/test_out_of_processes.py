"""Workers that the kernel refuses are tried again; one that it still refuses is a failure with a cause."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.multiprocessing import RoundLogsSpecs, context, subprocess_context
from agentd.elastic.multiprocessing.subprocess_context import SubprocessContext
from agentd.procs.spawn import SpawnError, spawn


def refusing(times: float) -> Callable[..., Any]:
    """A kernel that starts nothing the first times."""
    left = [times]

    def start(argv: list[str], **options: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise SpawnError(errno.EAGAIN, argv[0], os.strerror(errno.EAGAIN))
        return spawn(argv, **options)

    return start


def group(tmp_path: Path) -> SubprocessContext:
    envs = {rank: {"AGENTD_ROUND": "1"} for rank in range(2)}
    return SubprocessContext("workers", "/bin/true", {0: (), 1: ()}, envs, RoundLogsSpecs(str(tmp_path)))


def test_a_refusal_that_passes_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_context, "spawn", refusing(3))
    workers = group(tmp_path)
    try:
        workers.start()
        result = workers.wait(timeout=20)
        assert result is not None
        assert not result.is_failed()
    finally:
        workers.close()


def test_a_refusal_that_lasts_is_raised_with_its_cause_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "START_PATIENCE_S", 0.3)
    monkeypatch.setattr(subprocess_context, "spawn", refusing(float("inf")))
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

    def missing(argv: list[str], **_options: Any) -> Any:
        tried.append(argv[0])
        raise SpawnError(errno.ENOENT, argv[0], os.strerror(errno.ENOENT))

    monkeypatch.setattr(subprocess_context, "spawn", missing)
    workers = group(tmp_path)
    try:
        with pytest.raises(SpawnError):
            workers.start()
    finally:
        workers.close()
    assert tried == ["/bin/true"]
