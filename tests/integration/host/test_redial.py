"""Hosts that outlive their agentd: the next one hears each report once, and knows a stranger for one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentd.host import handle as handle_module
from agentd.host.door import HostDoor
from agentd.host.handle import HostHandle
from agentd.host.reports import read_reports
from agentd.host.wire import (
    Done,
    Ended,
    Exited,
    Failed,
    FinishHost,
    FrameReader,
    Hello,
    HostSpec,
    Refused,
    Started,
    encode,
)
from agentd.procs.identity import ProcessIdentity, boot_id, identify
from tests.support.fleet import is_gone
from tests.support.hosting import PATIENCE_S, Ear, host_spec, open_door, python
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

# Ends with the code that a file says, once it is there.
UNTIL_TOLD = (
    "import os, pathlib, sys, time",
    "file = pathlib.Path('end' + os.environ['RANK'])",
    "while not (file.exists() and file.read_text()): time.sleep(0.02)",
    "sys.exit(int(file.read_text()))",
)


@contextlib.asynccontextmanager
async def left_alone(root: Path, **changes: Any) -> AsyncIterator[tuple[HostSpec, Ear, Started]]:
    """A host in mode keep with two workers, whose agentd has gone; killed at the end if it is still there."""
    ear, spec = Ear(), host_spec(root, *python(*UNTIL_TOLD), mode="keep", **changes)
    async with open_door(root) as door:
        ear.handle = await door.start_host(spec, str(root), ear)
        ear.handle.admit()
        started = await ear.starts()
    try:
        yield spec, ear, started
    finally:
        ear.handle.kill()
        await asyncio.wait_for(ear.ends(), PATIENCE_S)


def take_over(door: HostDoor, root: Path, spec: HostSpec, former: Ear) -> Ear:
    """The next agentd's ear; it knows what the former one has heard."""
    ear, known = Ear(), former.handle
    assert known is not None
    assert known.identity is not None
    ear.handle = door.await_host(spec, str(root), known.identity, former.reports[-1].sequence, ear)
    return ear


def numbers(*ears: Ear) -> list[int]:
    return [report.sequence for ear in ears for report in ear.reports]


async def test_what_was_reported_meanwhile_is_heard_once_and_the_group_goes_on(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (spec, former, started):
        (tmp_path / "end0").write_text("0")
        await wait_until_async(lambda: is_gone(started.workers[0].pid), PATIENCE_S)
        async with open_door(tmp_path) as door:
            ear = take_over(door, tmp_path, spec, former)
            await wait_until_async(lambda: ear.met, PATIENCE_S)
            assert (await ear.hears(Exited)).exit_code == 0
            (tmp_path / "end1").write_text("0")
            await ear.hears(Done)
            await ear.ends()
    assert numbers(former, ear) == list(range(1, len(numbers(former, ear)) + 1))
    assert numbers(former, ear) == [r.sequence for r in read_reports(str(tmp_path), 0)]


async def test_a_host_that_ended_meanwhile_has_told_how(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (spec, former, _):
        for rank in (0, 1):
            (tmp_path / f"end{rank}").write_text("0")
        await former.ends()
        async with open_door(tmp_path) as door:
            ear = take_over(door, tmp_path, spec, former)
            await ear.hears(Done)
            await ear.ends()
    assert ear.met == 0


async def test_a_failure_that_waited_to_be_heard_is_as_old_as_it_is(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (spec, former, _):
        (tmp_path / "end1").write_text("3")
        await wait_until_async(
            lambda: any(isinstance(r, Failed) for r in read_reports(str(tmp_path), 0)), PATIENCE_S
        )
        await asyncio.sleep(1.0)
        async with open_door(tmp_path) as door:
            ear = take_over(door, tmp_path, spec, former)
            (failure,) = (await ear.hears(Failed)).failures
            assert (failure.rank, failure.exit_code) == (1, 3)
            assert failure.age_s > 1.0
            assert ear.handle is not None
            ear.handle.send(FinishHost(state="stopped"))
            await ear.hears(Ended)
            await ear.ends()


async def test_a_host_nobody_knows_any_more_stops_its_workers_with_the_grace(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (_, former, started), open_door(tmp_path):
        await former.ends()
        assert all(is_gone(worker.pid) for worker in started.workers)
    ends = [r for r in read_reports(str(tmp_path), 0) if isinstance(r, Exited)]
    assert [end.signal for end in ends] == [signal.SIGTERM, signal.SIGTERM]


async def test_a_host_that_does_not_dial_in_is_ended_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_module, "REDIAL_TIMEOUT_S", 0.5)
    async with left_alone(tmp_path) as (spec, former, started):
        assert former.handle is not None
        assert former.handle.identity is not None
        os.kill(former.handle.identity.pid, signal.SIGSTOP)
        async with open_door(tmp_path) as door:
            ear = take_over(door, tmp_path, spec, former)
            await ear.ends()
        await wait_until_async(lambda: all(is_gone(w.pid) for w in started.workers), PATIENCE_S)


async def test_a_connection_that_breaks_is_made_again_and_nothing_is_lost(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (spec, former, _), open_door(tmp_path) as door:
        ear = take_over(door, tmp_path, spec, former)
        for count in (1, 2, 3):
            await wait_until_async(lambda count=count: ear.met == count, PATIENCE_S)  # type: ignore[misc]
            for task in door._connections:
                task.cancel()
        (tmp_path / "end0").write_text("0")
        await ear.hears(Exited)
        assert len(numbers(ear)) == len(set(numbers(ear)))


async def test_who_only_knows_the_token_is_told_to_end(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (spec, former, _), open_door(tmp_path) as door:
        ear = take_over(door, tmp_path, spec, former)
        await wait_until_async(lambda: ear.met, PATIENCE_S)
        assert ear.handle is not None
        true, own = ear.handle.identity, identify(os.getpid())
        assert true is not None
        assert own is not None
        for claimed in (true, own):
            assert isinstance(await asyncio.to_thread(_answer, tmp_path, spec, claimed), Refused)
        assert isinstance(ear.handle, HostHandle)
        assert ear.met == 1


def _answer(root: Path, spec: HostSpec, claimed: ProcessIdentity) -> object:
    hello = Hello(
        run_id=spec.run_id,
        incarnation=spec.incarnation,
        role=spec.role,
        token=spec.token,
        pid=claimed.pid,
        start_time=claimed.start_time,
        boot_id=boot_id(),
    )
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stranger:
        stranger.settimeout(PATIENCE_S)
        stranger.connect(str(root / "hosts.sock"))
        stranger.sendall(encode(hello))
        (frame,) = FrameReader().feed(stranger.recv(65_536))
        return frame
