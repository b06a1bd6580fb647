"""A rig for each test; what it leaves behind is found by the checks of all tests."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.procs import stacks
from tests.integration.elastic.rig import PlainRendezvous, Rig
from tests.integration.elastic.timing import TimerRig
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def helpers_of_multiprocessing_end() -> Iterator[None]:
    """Fork server, resource tracker and folder of sockets serve a process until its end: here, a test's."""
    yield
    if "multiprocessing.resource_tracker" not in sys.modules:
        return
    from multiprocessing import current_process, forkserver, resource_tracker, util

    # Queues and shared memory that nobody holds any more tell the tracker, while it is there.
    gc.collect()
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    folder = current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
    finalizers = list(util._finalizer_registry.values()) if folder else []  # type: ignore[attr-defined]
    for finalizer in finalizers:
        if finalizer._callback is util._remove_temp_dir:  # type: ignore[attr-defined]
            finalizer()


@pytest.fixture
def plain() -> PlainRendezvous:
    return PlainRendezvous()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.waiter.close()
    wait_until(lambda: not rig.left(), what="no process of the rig is left")


@pytest.fixture
def timers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TimerRig]:
    # A worker that can tell its stacks does so in a moment, or when it has the CPU.
    monkeypatch.setattr(stacks, "ANSWER_BOUND_S", 30.0)
    monkeypatch.setattr(stacks, "ABORT_BOUND_S", 30.0)
    rig = TimerRig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def no_answer(timers: TimerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a worker that tells nothing."""
    monkeypatch.setattr(stacks, "ANSWER_BOUND_S", 0.5)
    monkeypatch.setattr(stacks, "ABORT_BOUND_S", 0.5)


@pytest.fixture
def no_py_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_find_py_spy", lambda _pid: None)
