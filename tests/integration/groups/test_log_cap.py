"""A log that grows without end stays within its cap, and nobody who reads it sees anything but lines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from agentd.api.errors import LimitExceeded
from agentd.api.types import LogChunk, LogGap, LogPosition, LogsRequest, LogStream, RunStatus, StreamEnd
from agentd.core.conditions import Condition
from agentd.groups import logcap
from agentd.groups.board import RunKey
from agentd.groups.logcap import LogCap, hold
from agentd.groups.logcursor import WorkerLog, tail_offset
from agentd.groups.logs import LogReader
from tests.support.noding import one_node, run_spec
from tests.support.waiting import wait_until, wait_until_async

CAP = 256 * 1024
LINE = 64
REQUEST = LogsRequest(run_id="r", streams=(LogStream.STDOUT,))


def lines(first: int, count: int) -> bytes:
    """So long that the offset tells the number."""
    return b"".join(f"line {number}".ljust(LINE - 1, ".").encode() + b"\n" for number in range(first, count))


def at(offset: int, size: int) -> bytes:
    """What such a file holds there."""
    first = offset // LINE
    text = lines(first, (offset + size) // LINE + 1)
    return text[offset - first * LINE :][:size]


def taken(path: Path) -> int:
    """Bytes of the disk."""
    return path.stat().st_blocks * 512


class Source:
    """A run with one worker, whose file the test writes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.file = folder / "stdout.log"
        self.file.touch()
        (folder / "stderr.log").touch()
        self.logs = (WorkerLog(role="default", round=1, local_rank=0, rank=0, directory=str(folder)),)

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus:
        return RunStatus(run_id=run_id, incarnation=1)

    def worker_logs(self, run_id: str, incarnation: int) -> tuple[WorkerLog, ...]:
        return self.logs

    async def wait_change(self, run_id: str, incarnation: int, revision: int) -> object:
        return await asyncio.Event().wait()

    def append(self, text: bytes) -> None:
        with self.file.open("ab") as file:
            file.write(text)

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[LogReader]:
        reader = LogReader(self, "n")
        try:
            yield reader
        finally:
            await reader.close()

    async def read(self, request: LogsRequest = REQUEST) -> list[LogChunk | LogGap]:
        """All that there is."""
        async with self.reader() as reader:
            return [each async for each in reader.read(request) if not isinstance(each, StreamEnd)]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "runs" / "r" / "1" / "default" / "round_1" / "0")


@pytest.fixture
def no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""

    def refuse(_fd: int, _end: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(logcap, "punch", refuse)


def test_the_oldest_part_goes_and_the_rest_keeps_its_offsets(source: Source) -> None:
    with source.file.open("ab", buffering=0) as worker:
        worker.write(lines(0, 16_000))
        cut = hold(str(source.file), CAP)
        assert cut.begins == cut.removed > 0
        assert taken(source.file) <= CAP
        worker.write(lines(16_000, 16_001))
    assert source.file.stat().st_size == 16_001 * LINE
    text = source.file.read_bytes()
    assert text[cut.begins :] == at(cut.begins, len(text) - cut.begins)
    assert len(text) - cut.begins >= CAP // 2
    assert hold(str(source.file), CAP).removed == 0


@pytest.mark.asyncio
async def test_who_begins_to_read_is_told_what_is_missing_and_gets_the_rest(source: Source) -> None:
    source.append(lines(0, 16_000))
    cut = hold(str(source.file), CAP)
    gap, *chunks = await source.read()
    assert isinstance(gap, LogGap)
    assert (gap.offset, gap.size, gap.stream) == (0, cut.begins, LogStream.STDOUT)
    data = b"".join(chunk.data for chunk in chunks if isinstance(chunk, LogChunk))
    assert data == at(cut.begins, 16_000 * LINE - cut.begins)


@pytest.mark.asyncio
async def test_who_comes_back_to_an_offset_that_is_gone_is_told_so(source: Source) -> None:
    source.append(lines(0, 16_000))
    cut = hold(str(source.file), CAP)
    before = LogPosition(role="default", round=1, local_rank=0, stream=LogStream.STDOUT, offset=5 * LINE)
    gap, first, *_ = await source.read(LogsRequest(run_id="r", streams=REQUEST.streams, resume=(before,)))
    assert isinstance(gap, LogGap)
    assert (gap.offset, gap.size) == (5 * LINE, cut.begins - 5 * LINE)
    assert first.offset == cut.begins


@pytest.mark.parametrize("wanted", [1, 10, 100_000])
def test_the_last_lines_are_found_in_front_of_a_hole(source: Source, wanted: int) -> None:
    source.append(lines(0, 16_000))
    begins = hold(str(source.file), CAP).begins
    assert tail_offset(str(source.file), wanted) == max(begins, (16_000 - wanted) * LINE)


@contextlib.contextmanager
def flooded(source: Source, count: int) -> Iterator[threading.Thread]:
    """A worker that writes and an agentd that cuts, both without a pause."""
    done = threading.Event()

    def write() -> None:
        with source.file.open("ab", buffering=0) as file:
            for number in range(0, count, 100):
                file.write(lines(number, number + 100))
        done.set()

    def cut() -> None:
        while not done.is_set():
            hold(str(source.file), CAP)

    threads = [threading.Thread(target=work) for work in (write, cut)]
    for thread in threads:
        thread.start()
    try:
        yield threads[0]
    finally:
        for thread in threads:
            thread.join()


@pytest.mark.asyncio
async def test_a_follower_of_a_flood_sees_each_byte_in_its_place_or_is_told_that_it_is_gone(
    source: Source,
) -> None:
    count, expected = 200_000, 0
    async with source.reader() as reader:
        with flooded(source, count) as writer:
            following = reader.read(LogsRequest(run_id="r", streams=REQUEST.streams, follow=True))
            while expected < count * LINE:
                found = await asyncio.wait_for(anext(following), 20)
                assert not isinstance(found, StreamEnd)
                assert found.offset == expected
                if isinstance(found, LogGap):
                    assert found.size > 0
                    expected += found.size
                else:
                    assert found.data == at(found.offset, len(found.data)), "zeros of a hole"
                    expected += len(found.data)
            writer.join()
        await following.aclose()


@pytest.mark.asyncio
async def test_without_holes_the_file_is_emptied_and_a_follower_goes_on_at_its_new_beginning(
    source: Source, no_holes: None
) -> None:
    source.append(lines(0, 16_000))
    got: list[LogChunk | LogGap] = []
    async with source.reader() as reader:

        async def follow() -> None:
            async for found in reader.read(LogsRequest(run_id="r", streams=REQUEST.streams, follow=True)):
                assert not isinstance(found, StreamEnd)
                got.append(found)

        following = asyncio.create_task(follow())
        await wait_until_async(lambda: sum(_size(each) for each in got) == 16_000 * LINE, 20)
        cut = hold(str(source.file), CAP)
        assert (cut.removed, cut.begins, source.file.stat().st_size) == (16_000 * LINE, 0, 0)
        source.append(b"anew\n")
        await wait_until_async(lambda: isinstance(got[-1], LogChunk) and got[-1].data == b"anew\n", 20)
        following.cancel()
        await asyncio.wait([following])
    gap, last = got[-2:]
    assert isinstance(gap, LogGap)
    assert (gap.offset, gap.size, last.offset) == (16_000 * LINE, 0, 0)


def _size(found: LogChunk | LogGap) -> int:
    return len(found.data) if isinstance(found, LogChunk) else found.size


@pytest.mark.asyncio
async def test_a_reader_without_a_descriptor_waits_for_one_and_misses_nothing(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.append(lines(0, 100))
    refused, real = [3], os.open

    def scarce(path: str, *arguments: int) -> int:
        if path == str(source.file) and refused[0]:
            refused[0] -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", scarce)
    monkeypatch.setattr("agentd.groups.logs.SHORTAGE_PAUSE_S", 0.01)
    data = b"".join(each.data for each in await source.read() if isinstance(each, LogChunk))
    assert (refused, data) == ([0], lines(0, 100))
    monkeypatch.setattr("agentd.groups.logs.SHORTAGE_S", 0.05)
    refused[0] = 1 << 30
    with pytest.raises(LimitExceeded, match="Too many open files"):
        await source.read()


class Registry:
    """Runs whose logs are looked after."""

    def __init__(self, **runs: tuple[WorkerLog, ...]) -> None:
        self.runs = {(name, 1): logs for name, logs in runs.items()}
        self.told: list[tuple[RunKey, str]] = []

    def live_logs(self) -> Mapping[RunKey, tuple[WorkerLog, ...]]:
        return dict(self.runs)

    def note(self, key: RunKey, condition: Condition, sentence: str) -> None:
        assert condition is Condition.LOGS_CUT
        self.told.append((key, sentence))


@contextlib.contextmanager
def capped(root: Path, registry: Registry) -> Iterator[LogCap]:
    cap = LogCap(str(root), CAP, registry)
    try:
        yield cap
    finally:
        cap._thread.shutdown()


@pytest.mark.asyncio
async def test_a_run_that_ended_between_two_looks_is_looked_at_once_more(
    tmp_path: Path, source: Source
) -> None:
    registry = Registry(r=source.logs)
    with capped(tmp_path, registry) as cap:
        await cap.step()
        source.append(lines(0, 16_000))
        registry.runs.clear()
        await cap.step()
        assert taken(source.file) <= CAP
        source.append(lines(0, 16_000))
        await cap.step()
        assert taken(source.file) > CAP


@pytest.mark.asyncio
async def test_links_and_folders_of_the_users_own_are_left_alone(tmp_path: Path, source: Source) -> None:
    elsewhere = Source(tmp_path / "mine" / "round_1" / "0")
    precious = tmp_path / "precious"
    for path in (elsewhere.file, precious):
        path.write_bytes(lines(0, 16_000))
    source.file.unlink()
    source.file.symlink_to(precious)
    with capped(tmp_path, Registry(r=source.logs, other=elsewhere.logs)) as cap:
        await cap.step()
    for path in (elsewhere.file, precious):
        assert taken(path) > CAP


@pytest.mark.asyncio
async def test_a_run_says_that_output_was_removed_and_so_does_the_next_agentd(tmp_path: Path) -> None:
    flood = (
        "import os, time",
        "os.write(1, b'x' * 63 + b'\\n' * 1)",
        "os.write(1, (b'y' * 63 + b'\\n') * 16000)",
    )
    async with one_node(tmp_path) as node:
        await node.run(run_spec(*flood, "time.sleep(600)"))
        await node.runs("job")
        files = [Path(log.directory, "stdout.log") for log in node.registry.worker_logs("job", 0)]
        file = files[1]
        wait_until(lambda: all(each.exists() and each.stat().st_size > 16_000 * 64 for each in files), 20)
        for _ in range(2):
            with capped(node.state_dir, Registry()) as cap:
                cap._runs = node.registry
                await cap.step()
            assert taken(file) <= CAP
            status = node.registry.status("job")
            assert "of ranks 0, 1 was removed" in status.nodes[0].conditions["LOGS_CUT"]
            node.registry._live["job", status.incarnation]._conditions.clear()
        assert os.stat(file).st_size > 16_000 * 64
