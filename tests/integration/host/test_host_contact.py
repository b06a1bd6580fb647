"""A real host keeps its round file by what it hears of the hub, and stops by itself when it hears no more."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agentd.core.contact import Contact
from agentd.host.handle import UNREAD_CONTACTS
from agentd.host.roundfile import ROUND_FILE
from agentd.host.wire import Exited, Failed, Isolated, Ready, StopRound
from agentd.procs.boottime import boottime
from tests.support.hosting import PATIENCE_S, Ear, host_spec, python, running_host
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.asyncio

ENDS_SLOWLY = python(
    "import os, signal, sys, time",
    "def save(*_):",
    "    while not os.path.exists('saved'): time.sleep(0.01)",
    "    sys.exit(0)",
    "signal.signal(signal.SIGTERM, save)",
    "open('ready-' + os.environ['AGENTD_ROUND'] + os.environ['RANK'], 'w')",
    "while True: time.sleep(0.01)",
)


def tell(ear: Ear, valid_for: float, **changes: Any) -> float:
    """Tell the host that the hub has answered; how long that holds."""
    assert ear.handle is not None
    now = boottime()
    ear.handle.tell_contact(Contact(sent_at=now, valid_until=now + valid_for, **changes))
    return now + valid_for


async def until_file_says(folder: Path, round: int, valid_until: float) -> None:
    def said() -> bool:
        file = folder / ROUND_FILE
        told = json.loads(file.read_text()) if file.exists() else {}
        return (told.get("round"), told.get("valid_until")) == (round, valid_until)

    await wait_until_async(said, PATIENCE_S)


async def test_the_file_is_renewed_while_the_round_runs_and_is_gone_before_the_host_says_so(
    tmp_path: Path,
) -> None:
    async with running_host(tmp_path, host_spec(tmp_path, *ENDS_SLOWLY, stop_grace_s=60.0)) as ear:
        assert ear.handle is not None
        tell(ear, 60.0)
        await ear.starts(1)
        # Before that a SIGTERM ends them at once.
        await wait_until_async(lambda: len(list(tmp_path.glob("ready-1*"))) == 2, PATIENCE_S)
        await until_file_says(tmp_path, 1, tell(ear, 70.0))
        ear.handle.send(StopRound(round=1))
        # Its workers are in their grace, and may save until the end of it.
        stopping = boottime() + 5.0
        tell(ear, 80.0, stopped_round=1, stopped_until=stopping)
        await until_file_says(tmp_path, 1, stopping)
        (tmp_path / "saved").touch()
        await ear.hears(Ready, 2)
        assert not (tmp_path / ROUND_FILE).exists()
        tell(ear, 90.0, stopped_round=1)
        await ear.starts(2)
        await until_file_says(tmp_path, 2, tell(ear, 95.0, stopped_round=1))
        assert not ear.all(Isolated)


async def test_a_host_that_is_to_stop_in_isolation_does_so_alone_and_takes_another_place(
    tmp_path: Path,
) -> None:
    (tmp_path / "saved").touch()
    spec = host_spec(tmp_path, *ENDS_SLOWLY, stop_grace_s=60.0, on_isolation="stop")
    async with running_host(tmp_path, spec) as ear:
        tell(ear, 60.0)
        started = await ear.starts(1)
        await wait_until_async(lambda: len(list(tmp_path.glob("ready-1*"))) == 2, PATIENCE_S)
        until = tell(ear, 0.2)
        again = await ear.hears(Ready, 2)
        assert boottime() > until
        (isolated,) = ear.all(Isolated)
        assert (isolated.round, again.round) == (1, 1)
        assert "no contact with the hub since" in isolated.reason
        ends = {(exited.pid, exited.exit_code, exited.torn_down) for exited in ear.all(Exited)}
        assert ends == {(worker.pid, 0, True) for worker in started.workers}
        tell(ear, 60.0, stopped_round=1)
        await ear.starts(2)


async def test_a_host_that_is_to_go_on_in_isolation_does(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        tell(ear, 60.0)
        await ear.starts(1)
        until = tell(ear, 0.1)
        await wait_until_async(lambda: boottime() > until + 0.3, PATIENCE_S)
        assert not ear.all(Isolated)
        assert not ear.all(Exited)


async def test_a_failure_waits_for_the_hub_and_is_not_taken_for_isolation(tmp_path: Path) -> None:
    spec = host_spec(tmp_path, *python("import sys; sys.exit(3)"), on_isolation="stop")
    async with running_host(tmp_path, spec) as ear:
        tell(ear, 60.0)
        await ear.starts(1)
        await ear.hears(Failed)
        until = tell(ear, 0.1)
        await wait_until_async(lambda: boottime() > until + 0.3, PATIENCE_S)
        assert not ear.all(Isolated)
        assert len(ear.all(Ready)) == 1


async def test_a_frozen_host_is_told_a_bounded_lot_and_hears_the_newest_once_it_wakes(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        tell(ear, 60.0)
        started = await ear.starts(1)
        assert ear.handle is not None
        assert ear.handle.identity is not None
        os.kill(ear.handle.identity.pid, signal.SIGSTOP)
        for _ in range(10_000):
            tell(ear, 60.0)
        writer = ear.handle._writer
        assert writer is not None
        assert writer.transport.get_write_buffer_size() <= 2 * UNREAD_CONTACTS
        os.kill(ear.handle.identity.pid, signal.SIGCONT)
        woken = boottime()

        def heard_since() -> bool:
            tell(ear, 60.0)
            told = json.loads((tmp_path / ROUND_FILE).read_text())
            return bool(told["round"] == started.round and told["valid_until"] > woken + 60.0)

        await wait_until_async(heard_since, PATIENCE_S)
