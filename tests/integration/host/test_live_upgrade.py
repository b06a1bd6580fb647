"""agentd is upgraded under a running host, which has all that it needs since before its first worker."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

import agentd
from agentd.host import door as door_module
from agentd.host.wire import Done, Failed, FinishHost, Ready, Recorded, StopRound
from tests.support.hosting import PATIENCE_S, Ear, host_spec, open_door, python

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

# Fails once with an error file, and succeeds in the next round.
FAILS_ONCE = (
    "import json, os, pathlib, sys, time",
    "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':",
    "    while not pathlib.Path('fail').exists(): time.sleep(0.02)",
    "    if os.environ['RANK'] == '1': sys.exit('on purpose')",
    "    time.sleep(600)",
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hosts find agentd: a copy that can be replaced."""
    root = tmp_path / "site"
    shutil.copytree(
        Path(agentd.__file__).parent, root / "agentd", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(door_module, "PACKAGES", str(root))
    return root


def replace_with_garbage(root: Path) -> None:
    for file in root.rglob("*"):
        if file.is_file():
            file.write_text("raise RuntimeError('this file is of another version')\n")


@pytest.mark.parametrize("end", ["done", "finish", "SIGTERM"])
async def test_a_host_goes_on_although_its_package_was_replaced(
    tmp_path: Path, installed: Path, end: str
) -> None:
    group, ear = tmp_path / "group", Ear()
    group.mkdir()
    async with open_door(group) as door:
        ear.handle = await door.start_host(host_spec(group, *python(*FAILS_ONCE)), str(group), ear)
        ear.handle.admit()
        try:
            await ear.starts(1)
            replace_with_garbage(installed)
            if end == "done":
                (group / "fail").touch()
                (failure,) = (await ear.hears(Failed)).failures
                assert (failure.rank, failure.exit_code) == (1, 1)
                assert "on purpose" in failure.stderr_tail
                ear.handle.send(StopRound(round=1))
                await ear.hears(Ready, 2)
                await ear.starts(2)
                await ear.hears(Done)
            elif end == "finish":
                ear.handle.send(FinishHost(state="stopped", grace_s=1.0))
            else:
                assert ear.handle.identity is not None
                os.kill(ear.handle.identity.pid, signal.SIGTERM)
            assert await ear.ends() == "exit code 0"
            assert ear.all(Recorded)
        finally:
            ear.handle.kill()
            await asyncio.wait_for(ear.ends(), PATIENCE_S)
    assert "another version" not in (group / "host.log").read_text()
