"""Reading and following real files, as a caller of Logs sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentd.api.channel import CHUNK_LIMIT
from agentd.api.errors import LogNotFound, RunNotFound
from agentd.api.types import (
    GroupStatus,
    LogChunk,
    LogPosition,
    LogsRequest,
    LogStream,
    NodeStatus,
    Phase,
    RunStatus,
    StreamEnd,
    StreamEndCause,
    WorkerState,
)
from agentd.groups.logs import LogReader, WorkerLog
from tests.support.waiting import wait_until_async

NODE = "n"
DEADLINE = 20.0


class Run:
    """One run's logs on this node, written by the test as its workers would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs: tuple[WorkerLog, ...] = ()
        self.phase = Phase.RUNNING
        self.group_phase = Phase.RUNNING
        self.revision = 1
        self.changed = asyncio.Event()

    def status(self, run_id: str, incarnation: int = 0) -> RunStatus:
        if run_id != "r":
            raise RunNotFound(run_id, NODE)
        group = GroupStatus(role="default", phase=self.group_phase, worker_state=WorkerState.HEALTHY)
        return RunStatus(
            run_id="r",
            incarnation=7,
            phase=self.phase,
            revision=self.revision,
            nodes=(NodeStatus(node_id=NODE, groups=(group,)),),
        )

    def worker_logs(self, run_id: str, incarnation: int) -> tuple[WorkerLog, ...]:
        assert incarnation == 7
        return self.logs

    async def wait_change(self, run_id: str, incarnation: int, revision: int) -> None:
        while self.revision <= revision:
            self.changed.clear()
            await self.changed.wait()

    def change(self) -> None:
        self.revision += 1
        self.changed.set()

    def start_round(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            folder = self.root / f"round_{number}" / str(rank)
            folder.mkdir(parents=True)
            (folder / "stdout.log").touch()
            (folder / "stderr.log").touch()
            entry = WorkerLog(role="default", round=number, local_rank=rank, rank=rank, directory=str(folder))
            self.logs = (*self.logs, entry)
        self.change()

    def write(self, number: int, rank: int, text: bytes, stream: str = "stdout") -> None:
        with (self.root / f"round_{number}" / str(rank) / f"{stream}.log").open("ab") as file:
            file.write(text)

    def end(self) -> None:
        self.phase = self.group_phase = Phase.SUCCEEDED
        self.change()


class Collector:
    """A caller that keeps what it got."""

    def __init__(self, reader: LogReader, request: LogsRequest) -> None:
        self.chunks: list[LogChunk] = []
        self.end: StreamEnd | None = None
        self.task = asyncio.create_task(self._collect(reader, request))

    async def _collect(self, reader: LogReader, request: LogsRequest) -> None:
        async for answer in reader.read(request):
            if isinstance(answer, StreamEnd):
                assert self.end is None
                self.end = answer
            else:
                assert self.end is None, "something came after the end"
                assert isinstance(answer, LogChunk)
                self.chunks.append(answer)

    async def finished(self) -> None:
        await asyncio.wait_for(self.task, DEADLINE)

    def text(self, rank: int = 0, round: int = 1, stream: LogStream = LogStream.STDOUT) -> bytes:
        """The file as it can be put together: every chunk where the one before ended."""
        data = b""
        for chunk in self.chunks:
            if (chunk.rank, chunk.round, chunk.stream) == (rank, round, stream):
                if data:
                    assert chunk.offset == self._end_of(data, rank, round, stream)
                data += chunk.data
        return data

    def _end_of(self, data: bytes, rank: int, round: int, stream: LogStream) -> int:
        first = next(c for c in self.chunks if (c.rank, c.round, c.stream) == (rank, round, stream))
        return first.offset + len(data)


@asynccontextmanager
async def reading(run: Run) -> AsyncIterator[LogReader]:
    reader = LogReader(run, NODE)
    try:
        yield reader
    finally:
        await reader.close()


@pytest.mark.asyncio
async def test_reading_gives_every_byte_and_ends(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0, 1)
    lines = b"".join(b"line %d\n" % number for number in range(100_000))
    run.write(1, 0, lines)
    run.write(1, 1, b"no newline at the end")
    run.write(1, 1, b"bad\n", "stderr")
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r"))
        await caller.finished()
    assert caller.text(0) == lines
    assert caller.text(1) == b"no newline at the end"
    assert caller.text(1, stream=LogStream.STDERR) == b"bad\n"
    assert caller.end is not None
    assert caller.end.cause is StreamEndCause.FINISHED
    assert max(len(chunk.data) for chunk in caller.chunks) <= CHUNK_LIMIT
    assert all(chunk.data.endswith(b"\n") for chunk in caller.chunks if chunk.rank == 0)


@pytest.mark.asyncio
async def test_following_shows_lines_as_they_come_and_ends_with_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r", follow=True))
        for number in range(5):
            run.write(1, 0, b"step %d\n" % number)
            await wait_until_async(lambda: caller.text().count(b"\n") == number + 1, DEADLINE)  # noqa: B023
            assert caller.text().endswith(b"step %d\n" % number)
        run.write(1, 0, b"last words")
        run.end()
        await caller.finished()
    assert caller.text().endswith(b"last words")
    assert caller.end is not None


@pytest.mark.asyncio
async def test_a_growing_file_wakes_its_reader_long_before_the_slow_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.groups.logs.LOOK_INTERVAL", 3600.0)
    run = Run(tmp_path)
    run.start_round(1, 0)
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r", follow=True))
        await wait_until_async(lambda: len(reader._watcher.watched) == 2, DEADLINE)
        run.write(1, 0, b"hello\n")
        await wait_until_async(lambda: caller.text() == b"hello\n", DEADLINE)
        run.end()
        await caller.finished()
        await wait_until_async(lambda: not reader._watcher.watched, DEADLINE)


@pytest.mark.asyncio
async def test_following_works_where_the_kernel_gives_no_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.groups.inotify.FileWatcher.add", lambda self, path, event: None)
    run = Run(tmp_path)
    run.start_round(1, 0)
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r", follow=True))
        run.write(1, 0, b"hello\n")
        await wait_until_async(lambda: caller.text() == b"hello\n", DEADLINE)
        run.end()
        await caller.finished()


@pytest.mark.asyncio
async def test_following_goes_over_a_restart_without_losing_the_old_rounds_last_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r", follow=True))
        run.write(1, 0, b"first\n")
        await wait_until_async(lambda: caller.text() == b"first\n", DEADLINE)
        run.write(1, 0, b"dying")
        run.start_round(2, 0)
        run.write(2, 0, b"again\n")
        await wait_until_async(lambda: caller.text(round=2) == b"again\n", DEADLINE)
        assert caller.text() == b"first\ndying"
        run.end()
        await caller.finished()
    rounds = [chunk.round for chunk in caller.chunks]
    assert rounds == sorted(rounds)


@pytest.mark.asyncio
async def test_an_unfinished_line_is_shown_although_its_end_does_not_come(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r", follow=True))
        run.write(1, 0, b"progress 10%\r")
        await wait_until_async(lambda: caller.text() == b"progress 10%\r", DEADLINE)
        run.write(1, 0, b"progress 20%\r")
        run.end()
        await caller.finished()
    assert caller.text() == b"progress 10%\rprogress 20%\r"


@pytest.mark.asyncio
async def test_resuming_where_the_last_chunk_ended_repeats_and_loses_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    run.write(1, 0, b"a\nb\n")
    async with reading(run) as reader:
        first = Collector(reader, LogsRequest(run_id="r", follow=True))
        await wait_until_async(lambda: first.text() == b"a\nb\n", DEADLINE)
        first.task.cancel()
        await asyncio.wait({first.task})
        run.write(1, 0, b"c\n")
        run.start_round(2, 0)
        run.write(2, 0, b"d\n")
        position = LogPosition(role="default", round=1, local_rank=0, stream=LogStream.STDOUT, offset=4)
        second = Collector(reader, LogsRequest(run_id="r", follow=True, resume=(position,)))
        run.end()
        await second.finished()
    assert second.text() == b"c\n"
    assert second.text(round=2) == b"d\n"


@pytest.mark.asyncio
async def test_a_tail_is_for_what_was_there_and_later_rounds_come_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    run.write(1, 0, b"old\n" * 1000 + b"new\n")
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r", follow=True, tail_lines=1))
        await wait_until_async(lambda: caller.text() == b"new\n", DEADLINE)
        run.start_round(2, 0)
        run.write(2, 0, b"one\ntwo\n")
        run.end()
        await caller.finished()
    assert caller.text(round=2) == b"one\ntwo\n"


@pytest.mark.asyncio
async def test_the_end_waits_for_this_nodes_workers_though_the_run_is_decided(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    async with reading(run) as reader:
        caller = Collector(reader, LogsRequest(run_id="r", follow=True))
        run.phase, run.group_phase = Phase.FAILED, Phase.STOPPING
        run.change()
        run.write(1, 0, b"saving a checkpoint\n")
        await wait_until_async(lambda: caller.text() == b"saving a checkpoint\n", DEADLINE)
        assert not caller.task.done()
        run.write(1, 0, b"saved\n")
        run.group_phase = Phase.STOPPED
        run.change()
        await caller.finished()
    assert caller.text() == b"saving a checkpoint\nsaved\n"


@pytest.mark.asyncio
async def test_one_reader_that_stops_reading_holds_up_no_other(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    run.write(1, 0, b"x" * 99 + b"\n")
    async with reading(run) as reader:
        stuck = [reader.read(LogsRequest(run_id="r", follow=True)) for _ in range(50)]
        for answers in stuck:
            await anext(answers)
        run.write(1, 0, (b"y" * 99 + b"\n") * 10_000)
        caller = Collector(reader, LogsRequest(run_id="r", follow=True))
        await wait_until_async(lambda: len(caller.text()) == 100 * 10_001, DEADLINE)
        readers = [thread for thread in threading.enumerate() if thread.name.startswith("agentd-logs")]
        assert len(readers) <= 4
        run.end()
        await caller.finished()
        for answers in stuck:
            await answers.aclose()


@pytest.mark.asyncio
async def test_not_following_a_file_that_grows_all_the_time_still_ends(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    run.write(1, 0, (b"z" * 99 + b"\n") * 20_000)
    async with reading(run) as reader:
        count = 0
        async for answer in reader.read(LogsRequest(run_id="r")):
            if isinstance(answer, LogChunk):
                count += len(answer.data)
                run.write(1, 0, (b"z" * 99 + b"\n") * 5_000)
    assert count == 2_000_000


@pytest.mark.asyncio
async def test_a_reading_that_is_under_way_when_agentd_ends_ends_without_a_fault(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    run.write(1, 0, b"one\n")
    async with reading(run) as reader:
        answers = reader.read(LogsRequest(run_id="r", follow=True))
        await anext(answers)
        await reader.close()
        assert [answer async for answer in answers] == []


@pytest.mark.asyncio
async def test_ranks_that_are_not_here_are_an_error_and_so_is_an_unknown_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_round(1, 0)
    async with reading(run) as reader:
        with pytest.raises(LogNotFound, match="rank 5"):
            await anext(reader.read(LogsRequest(run_id="r", ranks=(5,))))
        with pytest.raises(LogNotFound, match="no log of role x of round 7 here"):
            await anext(reader.read(LogsRequest(run_id="r", role="x", round=7)))
        with pytest.raises(RunNotFound):
            await anext(reader.read(LogsRequest(run_id="other")))
