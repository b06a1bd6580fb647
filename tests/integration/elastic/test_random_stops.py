"""Agents stopped at random moments, by call and by signal: every time promptly, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.elastic import LocalElasticAgent, SignalException, WorkerState
from tests.integration.elastic.rig import Rig

SCRIPTS = (
    "exit 0",
    "sleep 0.01; exit $LOCAL_RANK",
    "(setsid sleep 1000 &); sleep 0.02",
    'trap "" TERM; sleep 1000',
    'sh -c "sleep 1000; :"; echo',
    "kill -TERM $$",
    "kill -KILL $$",
    "(sleep 1000 &) ; exit 1",
    "exec sleep 1000",
)
RUNS = 12
ENDS = {WorkerState.STOPPED, WorkerState.SUCCEEDED, WorkerState.FAILED}


def _at(moment: float, action: Callable[[], object], rig: Rig) -> None:
    rig.when(lambda: time.monotonic() >= moment, action)


def _one_run(rig: Rig, choose: random.Random) -> None:
    agent: LocalElasticAgent = rig.shell(
        choose.choice(SCRIPTS),
        size=choose.randint(1, 4),
        restarts=choose.randint(0, 2),
        grace=choose.choice([0.0, 0.05, 0.2]),
    )
    begin = time.monotonic()
    # The last one always ends it: some of the programs never do.
    _at(begin + 0.3, lambda: agent.request_stop(0), rig)
    for _ in range(choose.randint(0, 2)):
        by_signal = choose.random() < 0.4
        stop = (lambda: os.kill(os.getpid(), signal.SIGTERM)) if by_signal else agent.request_stop
        _at(begin + choose.random() * 0.2, stop, rig)
    with contextlib.suppress(SignalException):
        assert agent.run().state in ENDS
    assert time.monotonic() - begin < 30
    assert rig.left() == []


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_left_whenever_the_stop_comes(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    for number in range(RUNS):
        rig = Rig(tmp_path / f"{seed}-{number}")
        try:
            _one_run(rig, choose)
        finally:
            rig.waiter.close()
