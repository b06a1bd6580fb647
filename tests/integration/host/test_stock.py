"""A host from stock is, to all who look, one that was started for its group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.host.door import PACKAGES, HostDoor
from agentd.host.stock import IN_STOCK, HostStock
from agentd.host.wire import Ended, FinishHost, HostSpec
from agentd.procs import procfs, tree
from agentd.procs.identity import identify
from tests.support.hosting import PATIENCE_S, Ear, host_spec, open_door
from tests.support.shortage import no_more_files
from tests.support.waiting import wait_until, wait_until_async

OWNER = """
import os, sys, time
from agentd.host.stock import HostStock
command = [sys.executable, "-S", "-m", "agentd.host"]
stock = HostStock(command, {**os.environ, "PYTHONPATH": sys.argv[2]}, sys.argv[1])
stock.fill()
print(stock._host.child.pid, flush=True)
while stock._host.is_starting(): time.sleep(0.01)
print("ready", flush=True)
time.sleep(600)
"""


def in_stock() -> list[int]:
    """Hosts that were started by this process and wait."""
    return [
        stat.pid
        for stat in procfs.processes()
        if stat.parent == os.getpid() and IN_STOCK.encode() in procfs.read_command(stat.pid)
    ]


def test_a_stock_that_could_have_no_host_has_one_later(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "agentd.host"]
    stock = HostStock(command, {**os.environ, "PYTHONPATH": PACKAGES}, str(tmp_path))
    with no_more_files(os.getpid()):
        stock.fill()
    assert in_stock() == []
    stock.fill()
    assert wait_until(in_stock, PATIENCE_S)
    stock.close()
    wait_until(lambda: not in_stock(), PATIENCE_S)


async def _fill(door: HostDoor) -> int:
    door._stock.fill()
    waiting = door._stock._host
    assert waiting is not None
    await wait_until_async(lambda: not waiting.is_starting(), PATIENCE_S)
    return waiting.child.pid


@contextlib.asynccontextmanager
async def _started(door: HostDoor, spec: HostSpec, folder: Path) -> AsyncIterator[Ear]:
    folder.mkdir(exist_ok=True)
    ear = Ear()
    ear.handle = await door.start_host(spec, str(folder), ear)
    ear.handle.admit()
    try:
        yield ear
    finally:
        ear.handle.kill()
        await ear.ends()


def _pid(ear: Ear) -> int:
    assert ear.handle is not None
    assert ear.handle.identity is not None
    return ear.handle.identity.pid


@pytest.mark.asyncio
async def test_nothing_tells_a_host_from_stock_from_one_that_was_started(tmp_path: Path) -> None:
    first, second = (host_spec(tmp_path, local_world_size=1, role=role) for role in ("one", "two"))
    async with open_door(tmp_path) as door:
        async with _started(door, first, tmp_path / "one") as one:
            waiting = await _fill(door)
            async with _started(door, second, tmp_path / "two") as two:
                assert _pid(two) == waiting != _pid(one)
                await two.starts()
                seen = [_seen(_pid(ear), spec) for ear, spec in ((one, first), (two, second))]
                assert seen[0] == seen[1]
                found = {stat.pid for stat in tree.find(tree.Marks(token=second.token))}
                assert waiting in found
                assert len(found) == 2


def _seen(pid: int, spec: HostSpec) -> object:
    """What /proc tells of a host, without what is its group's own."""
    proc = Path(f"/proc/{pid}")
    environ = set(procfs.read_environ(pid).split(b"\0"))
    assert f"{tree.TOKEN_VARIABLE}={spec.token}".encode() in environ
    words = procfs.read_command(pid).rstrip(b"\0").decode().split("\0")
    files = [str((proc / "fd" / fd).readlink()) for fd in ("0", "1", "2")]
    own = str((proc / "cwd").readlink())
    return (
        [word.replace(spec.role, "ROLE") for word in words],
        {name for name, _, _ in (item.partition(b"=") for item in environ)},
        [file.replace(own, "OWN") for file in files],
        own == words[words.index("agentd.host") + 2],
        os.getsid(pid) == pid,
    )


@pytest.mark.asyncio
async def test_a_host_from_stock_reports_and_ends_like_any_other(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        await _fill(door)
        async with _started(door, host_spec(tmp_path, local_world_size=1), tmp_path / "group") as ear:
            await ear.starts()
            assert ear.handle is not None
            ear.handle.send(FinishHost(state="stopped", reason="asked"))
            assert (await ear.hears(Ended)).reason == "asked"
            assert await ear.ends() == "exit code 0"


@pytest.mark.asyncio
async def test_a_host_that_died_in_stock_is_not_missed(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        waiting = await _fill(door)
        os.kill(waiting, signal.SIGKILL)
        await wait_until_async(lambda: (stat := procfs.read_stat(waiting)) and stat.state == "Z", PATIENCE_S)
        async with _started(door, host_spec(tmp_path, local_world_size=1), tmp_path / "group") as ear:
            await ear.starts()
            assert _pid(ear) != waiting


@pytest.mark.asyncio
async def test_an_agentd_that_starts_one_host_keeps_none_and_one_that_starts_two_does(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        async with _started(door, host_spec(tmp_path, local_world_size=1), tmp_path / "one") as one:
            await one.starts()
            assert door._refill is None
            async with _started(door, host_spec(tmp_path, local_world_size=1), tmp_path / "two") as two:
                await two.starts()
                await wait_until_async(lambda: len(in_stock()) == 1, PATIENCE_S)
    assert in_stock() == []


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_host_in_stock_ends_without_a_word_with_an_agentd_that_is_killed(
    tmp_path: Path, is_ready: bool
) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path), PACKAGES]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        host = identify(int(owner.stdout.readline()))
        assert host is not None
        if is_ready:
            assert owner.stdout.readline() == b"ready\n"
    finally:
        owner.kill()
        _, words = owner.communicate(timeout=PATIENCE_S)
    wait_until(lambda: identify(host.pid) != host, PATIENCE_S)
    assert words == b""
