"""A test that changes what this process is to the kernel is told so, and the next one does not feel it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agentd.procs import prctl
from tests.support.ownstate import OwnState


def _ignore_sigusr1() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _block_sigusr1() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_ignore_sigusr1, "SIGUSR1 has the handler"),
        (_block_sigusr1, "SIGUSR1 is blocked"),
        (prctl.become_subreaper, "the process is a subreaper"),
    ],
)
def test_a_change_is_named_and_undone(change: object, said: str) -> None:
    before, status = OwnState.now(), _signals()
    assert callable(change)
    change()
    (found,) = before.put_back()
    assert found.startswith(said)
    assert (OwnState.now(), _signals()) == (before, status)
    assert before.put_back() == []


def _signals() -> list[str]:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
