"""What a zygote said right before its end is heard, however late its owner listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentd.procs.exits import peek_exit
from agentd.procs.waiter import Waiter
from agentd.procs.zygote import process
from agentd.procs.zygote.keeper import Keeper
from tests.integration.preload.rig import PYTHON, Commands
from tests.support.waiting import wait_until


def test_a_zygote_that_ended_before_anybody_listened_has_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is then seen first. Without its last word it would be started again, and again in vain."""
    start, starts = process._start, list[int]()

    def start_and_be_held_up(*given: Any) -> Any:
        child = start(*given)
        starts.append(child.pid)
        wait_until(lambda: peek_exit(child.pid) is not None)
        return child

    monkeypatch.setattr(process, "_start", start_and_be_held_up)
    (tmp_path / "script.py").touch()
    commands = Commands(tmp_path, ("no_such_thing",))
    with Waiter() as waiter:
        keeper = Keeper(waiter, commands.recipe((PYTHON, "script.py")))
        try:
            for _ in range(2):
                assert keeper.take(1) == []
                assert "No module named 'no_such_thing'" in keeper.problem
        finally:
            keeper.close()
    assert len(starts) == 1
