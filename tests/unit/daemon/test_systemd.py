"""What systemd is told: pure parts, and a loop that feeds a real notify socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest

from agentd.daemon.systemd import report, status_line, watchdog_s


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
    ],
)
def test_the_watchdog_is_ours_only_if_systemd_says_so(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_s(environ, 7) == seconds


def test_the_status_is_one_line_for_people() -> None:
    assert status_line(groups=0, runs=0, conditions=(), leaving="") == "Serving no worker group"
    assert status_line(groups=2, runs=1, conditions=(), leaving="") == "Serving 2 worker groups of 1 run"
    leaving = status_line(groups=1, runs=1, conditions=("UNKILLABLE",), leaving="SIGTERM")
    assert leaving == "Going away (SIGTERM); 1 worker group of 1 run left; degraded: UNKILLABLE"


def test_a_loop_that_turns_feeds_the_watchdog_and_one_that_hangs_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(60.0)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
        monkeypatch.setenv("NOTIFY_SOCKET", path)

        async def live() -> None:
            task = asyncio.create_task(report(lambda: "well", environ))
            for _ in range(3):
                assert await asyncio.to_thread(systemd.recv, 100) == b"STATUS=well\nWATCHDOG=1"
            systemd.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while systemd.recv(100):  # what it said before it hung
                    pass
            systemd.settimeout(0.3)
            with pytest.raises(TimeoutError):
                systemd.recv(100)  # on the loop, which hangs meanwhile
            task.cancel()

        asyncio.run(live())
