"""The small helpers that torch's users import from `utils`."""

from __future__ import annotations

import os
import subprocess

import pytest

from agentd.elastic.utils.log_level import get_log_level
from agentd.elastic.utils.process_state import is_uninterruptible_state, read_proc_state


def test_the_state_of_a_process_is_the_kernels_letter() -> None:
    assert read_proc_state(os.getpid()) == "R"
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert read_proc_state(child.pid) == "Z"
    child.wait()
    assert read_proc_state(child.pid) is None


@pytest.mark.parametrize(("state", "deaf"), [("D", True), ("S", False), ("R", False), (None, False)])
def test_only_uninterruptible_sleep_is_deaf_to_signals(state: str | None, deaf: bool) -> None:
    assert is_uninterruptible_state(state) is deaf


def test_the_level_without_a_choice_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGLEVEL", "DEBUG")
    assert get_log_level() == "WARNING"
