"""Hosts of the previous version, the real old code, under the agentd of today; and those too far apart."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.host import wire
from agentd.host.wire import Ended, Failed, FinishHost, FrameReader, Hello, Ready, Refused, StopRound
from agentd.procs.identity import boot_id, identify
from tests.support.hosting import PATIENCE_S, Ear, host_spec, open_door, python
from tests.support.hosts import PREVIOUS, hosts_of

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

# Fails with the code that a file says, once it is there.
UNTIL_TOLD = (
    "import os, pathlib, sys, time",
    "file = pathlib.Path('end' + os.environ['RANK'])",
    "while not (file.exists() and file.read_text()): time.sleep(0.02)",
    "sys.exit(int(file.read_text()))",
)


@pytest.fixture
def _previous_hosts() -> Iterator[None]:
    with hosts_of(PREVIOUS):
        yield


@pytest.mark.usefixtures("_previous_hosts")
async def test_a_host_of_the_previous_version_is_taken_over_and_goes_through_a_round(tmp_path: Path) -> None:
    spec = host_spec(tmp_path, *python(*UNTIL_TOLD), mode="keep")
    former, ear = Ear(), Ear()
    async with open_door(tmp_path) as door:
        former.handle = await door.start_host(spec, str(tmp_path), former)
        former.handle.admit()
        began = await former.starts()
    try:
        (tmp_path / "end1").write_text("3")
        async with open_door(tmp_path) as door:
            assert former.handle.identity is not None
            heard = former.reports[-1].sequence
            ear.handle = door.await_host(spec, str(tmp_path), former.handle.identity, heard, ear)
            (failure,) = (await ear.hears(Failed)).failures
            assert (failure.rank, failure.exit_code) == (1, 3)
            (tmp_path / "end1").unlink()
            ear.handle.send(StopRound(round=1))
            await ear.hears(Ready)
            again = await ear.starts(2)
            assert {worker.pid for worker in began.workers}.isdisjoint(w.pid for w in again.workers)
            ear.handle.send(FinishHost(state="stopped", reason="enough", grace_s=1.0))
            ended = await ear.hears(Ended)
            await ear.ends()
    finally:
        former.handle.kill()
    assert (ended.state, ended.reason) == ("stopped", "enough")
    numbers = [report.sequence for report in (*former.reports, *ear.reports)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.usefixtures("_previous_hosts")
async def test_a_host_of_the_previous_version_is_not_sent_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SINCE", {wire.SignalWorkers.type: 2})
    ear = Ear()
    async with open_door(tmp_path) as door:
        ear.handle = await door.start_host(host_spec(tmp_path), str(tmp_path), ear)
        ear.handle.admit()
        try:
            await ear.starts()
            ear.handle.send(wire.SignalWorkers(signal=signal.SIGKILL))
            ear.handle.send(FinishHost(state="stopped", reason="enough", grace_s=1.0))
            assert (await ear.hears(Ended)).reason == "enough"
            await ear.ends()
        finally:
            ear.handle.kill()
    assert not ear.all(Failed)
    assert ear.met == 0, "it never had to dial again"


@pytest.mark.parametrize(
    ("newest", "oldest", "words"),
    [(99, 98, "newer"), (0, 0, "older")],
    ids=["too new", "too old"],
)
async def test_a_host_that_is_too_far_away_is_told_both_versions_and_what_to_do(
    tmp_path: Path, newest: int, oldest: int, words: str
) -> None:
    own = identify(os.getpid())
    assert own is not None
    spec, ear = host_spec(tmp_path, mode="keep"), Ear()
    async with open_door(tmp_path) as door:
        # This very process is the host that dials in.
        handle = door.await_host(spec, str(tmp_path), own, 0, ear)
        hello = Hello(
            run_id=spec.run_id, incarnation=spec.incarnation, role=spec.role, token=spec.token, pid=own.pid,
            start_time=own.start_time, boot_id=boot_id(), protocol=newest, oldest_protocol=oldest,
        )  # fmt: skip
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "hosts.sock"))
        writer.write(wire.encode(hello))
        (refused,) = FrameReader().feed(await asyncio.wait_for(reader.read(), PATIENCE_S))
        writer.close()
        handle.abandon()
    assert isinstance(refused, Refused)
    assert f"versions {oldest} to {newest}" in refused.reason
    assert f"{wire.OLDEST} to {wire.VERSION}" in refused.reason
    assert words in refused.reason
    assert "stop its runs first" in refused.reason


async def test_a_frame_of_the_next_version_breaks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A host of today hears two strange frames, and then one that it knows."""
    ear = Ear()
    async with open_door(tmp_path) as door:
        ear.handle = await door.start_host(host_spec(tmp_path), str(tmp_path), ear)
        ear.handle.admit()
        try:
            await ear.starts()
            writer = ear.handle._writer
            assert writer is not None
            for body in (b'{"version":3,"type":"dance"}', b'{"version":99,"type":"stop_round","steps":2}'):
                writer.write(len(body).to_bytes(4, "big") + body)
            ear.handle.send(FinishHost(state="stopped", reason="enough", grace_s=1.0))
            assert (await ear.hears(Ended)).reason == "enough"
            await ear.ends()
        finally:
            ear.handle.kill()
    log = (tmp_path / "host.log").read_text()
    assert [line.split(" is not known")[0] for line in log.splitlines()] == [
        "a frame of the type 'dance' and the version 3",
        "a frame of the type 'stop_round' and the version 99",
    ]
