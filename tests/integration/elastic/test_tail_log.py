"""Growing files on their way to a console: nothing lost, nothing doubled, nobody held up."""

from __future__ import annotations

import io
import logging
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from agentd.elastic.multiprocessing.tail_log import TailLog, tail_logfile
from tests.support.waiting import wait_until


class Console:
    """An ordinary text file over a pipe; read by the test, or by a thread that drains it."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        self.file = open(write, "w", encoding="utf-8")  # noqa: SIM115 - closed by all()
        self._thread: threading.Thread | None = None
        self._data: list[bytes] = []

    def drain(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while data := os.read(self._read, 1 << 20):
            self._data.append(data)

    def so_far(self) -> bytes:
        return b"".join(self._data)

    def all(self) -> bytes:
        self.file.close()
        if self._thread is not None:
            self._thread.join()
        return self.so_far()

    def lose_reader(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def close(self) -> None:
        self.all()
        self.lose_reader()


@pytest.fixture
def console() -> Iterator[Console]:
    console = Console()
    yield console
    console.close()


def _write(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def test_lines_appear_with_their_prefix_while_they_are_written(tmp_path: Path, console: Console) -> None:
    console.drain()
    files = {0: str(tmp_path / "0"), 1: str(tmp_path / "1")}
    tail = TailLog("trainer", files, console.file, {1: "other> "}).start()
    try:
        _write(tmp_path / "0", b"zero\n")
        wait_until(lambda: console.so_far() == b"[trainer0]:zero\n")
        _write(tmp_path / "1", b"one\n")
        wait_until(lambda: console.so_far().endswith(b"other> one\n"))
        assert not tail.stopped()
    finally:
        tail.stop()
    assert tail.stopped()
    assert console.all() == b"[trainer0]:zero\nother> one\n"


def test_an_existing_file_is_read_when_it_is_written_and_not_by_the_clock(
    tmp_path: Path, console: Console
) -> None:
    console.drain()
    (tmp_path / "0").touch()
    tail = TailLog("t", {0: str(tmp_path / "0")}, console.file, {0: ""}, interval_sec=300).start()
    try:
        for number in range(20):
            _write(tmp_path / "0", b"%d\n" % number)
            wait_until(lambda line=b"%d\n" % number: console.so_far().endswith(line))  # type: ignore[misc]
    finally:
        tail.stop()


def test_a_line_is_shown_when_its_newline_comes(tmp_path: Path, console: Console) -> None:
    console.drain()
    tail = TailLog("t", {0: str(tmp_path / "0")}, console.file).start()
    try:
        _write(tmp_path / "0", b"first\nha")
        wait_until(lambda: console.so_far() == b"[t0]:first\n")
        _write(tmp_path / "0", b"lf\n")
        wait_until(lambda: console.so_far() == b"[t0]:first\n[t0]:half\n")
    finally:
        tail.stop()


@pytest.mark.parametrize("over_a_descriptor", [True, False], ids=["descriptor", "any object"])
def test_what_was_written_before_the_stop_is_out_after_it(
    tmp_path: Path, console: Console, over_a_descriptor: bool
) -> None:
    console.drain()
    memory = io.StringIO()
    dst: TextIO = console.file if over_a_descriptor else memory
    for number in range(30):
        path = tmp_path / str(number)
        tail = TailLog("t", {0: str(path)}, dst, {0: ""}).start()
        _write(path, b"a %d\n" % number)
        _write(path, b"b %d" % number)
        tail.stop()
        tail.stop()
    out = console.all().decode() if over_a_descriptor else memory.getvalue()
    assert out == "".join(f"a {number}\nb {number}\n" for number in range(30))


def test_a_worker_killed_in_the_middle_of_a_line_leaves_what_it_wrote(
    tmp_path: Path, console: Console
) -> None:
    console.drain()
    path = tmp_path / "0"
    program = "import os, signal; os.write(1, b'one\\ntw'); os.kill(os.getpid(), signal.SIGKILL)"
    tail = TailLog("t", {0: str(path)}, console.file).start()
    with path.open("wb") as out:
        done = subprocess.run([sys.executable, "-c", program], stdout=out, timeout=30, check=False)
    tail.stop()
    assert done.returncode == -signal.SIGKILL
    assert console.all() == b"[t0]:one\n[t0]:tw\n"


def test_bad_bytes_are_replaced_and_carriage_returns_kept(tmp_path: Path, console: Console) -> None:
    console.drain()
    path = tmp_path / "0"
    path.write_bytes(b"bad \xff\xc3 byte\r\n" + "torn ä\n".encode())
    tail = TailLog("t", {0: str(path)}, console.file).start()
    tail.stop()
    assert console.all().decode() == "[t0]:bad \ufffd\ufffd byte\r\n[t0]:torn ä\n"


def test_a_character_torn_between_two_writes_is_whole(tmp_path: Path, console: Console) -> None:
    console.drain()
    tail = TailLog("t", {0: str(tmp_path / "0")}, console.file).start()
    for byte in "ä€💥\n".encode():
        _write(tmp_path / "0", bytes([byte]))
    tail.stop()
    assert console.all().decode() == "[t0]:ä€💥\n"


def test_a_console_of_another_encoding_gets_escapes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "0").write_text("ä\n", encoding="utf-8")
    with out.open("w", encoding="ascii") as file:
        TailLog("t", {0: str(tmp_path / "0")}, file).start().stop()
    assert out.read_bytes() == b"[t0]:\\xe4\n"


def test_a_hundred_megabytes_without_a_newline_take_no_memory(tmp_path: Path) -> None:
    path, out = tmp_path / "0", tmp_path / "out"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with out.open("w", encoding="utf-8") as dst:
        TailLog("t", {0: str(path)}, dst).start().stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
    assert out.stat().st_size == len("[t0]:") + 100_000_000 + 1
    with out.open("rb") as file:
        assert file.read(6) == b"[t0]:x"
        assert all(b"[" not in chunk for chunk in iter(lambda: file.read(1 << 20), b""))


def test_many_busy_writers_keep_their_lines(tmp_path: Path, console: Console) -> None:
    console.drain()
    files = {rank: str(tmp_path / str(rank)) for rank in range(8)}
    tail = TailLog("t", files, console.file).start()
    program = "import sys\nfor n in range(5000): print(sys.argv[1], n, 'x' * (n % 90))\n"
    workers = []
    for rank, path in files.items():
        with open(path, "wb") as out:
            workers.append(subprocess.Popen([sys.executable, "-c", program, str(rank)], stdout=out))
    for worker in workers:
        assert worker.wait(60) == 0
    tail.stop()
    lines = console.all().decode().splitlines()
    for rank in files:
        mine = [line for line in lines if line.startswith(f"[t{rank}]:")]
        assert mine == [f"[t{rank}]:{rank} {n} {'x' * (n % 90)}" for n in range(5000)]
    assert len(lines) == 8 * 5000


def test_a_file_that_is_cut_short_goes_on_from_its_beginning(tmp_path: Path, console: Console) -> None:
    console.drain()
    path = tmp_path / "0"
    tail = TailLog("t", {0: str(path)}, console.file, {0: ""}, interval_sec=0.01).start()
    try:
        _write(path, b"before the cut\n")
        wait_until(lambda: console.so_far() == b"before the cut\n")
        os.truncate(path, 0)
        _write(path, b"after\n")
        wait_until(lambda: console.so_far() == b"before the cut\nafter\n")
    finally:
        tail.stop()


def test_a_filter_drops_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    (tmp_path / "0").write_text("keep 1\ndrop\nkeep 2\n")
    tail = TailLog("t", {0: str(tmp_path / "0")}, out, log_line_filter=lambda line: "keep" in line)
    tail.start().stop()
    assert out.getvalue() == "[t0]:keep 1\n[t0]:keep 2\n"


def test_files_that_never_come_or_cannot_be_read_hold_up_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = io.StringIO()
    (tmp_path / "good").write_text("good\n")
    files = {0: str(tmp_path / "none"), 1: str(tmp_path), 2: "", 3: os.devnull, 4: str(tmp_path / "good")}
    TailLog("t", files, out).start().stop()
    assert out.getvalue() == "[t4]:good\n"
    assert "is followed no longer" in caplog.text


def test_without_files_or_a_console_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    tails = [TailLog("t", {}, sys.stdout).start(), TailLog("t", {0: str(tmp_path / "x")}, None).start()]
    assert threading.active_count() == before
    for tail in tails:
        tail.stop()
        assert tail.stopped()


def test_a_writer_that_never_ends_does_not_keep_the_stop_waiting(tmp_path: Path) -> None:
    path = tmp_path / "0"
    with path.open("wb") as file, open(os.devnull, "w", encoding="utf-8") as out:
        endless = subprocess.Popen(["yes"], stdout=file)
        try:
            wait_until(lambda: path.stat().st_size > 1_000_000)
            tail = TailLog("t", {0: str(path)}, out).start()
            began = time.monotonic()
            tail.stop()
            assert time.monotonic() - began < 25
        finally:
            endless.kill()
            endless.wait()


def test_a_console_that_takes_nothing_is_given_up_at_the_stop(
    tmp_path: Path, console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0").write_bytes(b"line\n" * 100_000)
    tail = TailLog("t", {0: str(tmp_path / "0")}, console.file).start()
    began = time.monotonic()
    tail.stop()
    assert time.monotonic() - began < 15
    assert "the console takes nothing" in caplog.text
    assert str(tmp_path / "0") in caplog.text
    console.drain()


def test_a_stopped_terminal_is_given_up_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leader, follower = pty.openpty()
    before = threading.active_count()
    try:
        with open(follower, "w", encoding="utf-8") as terminal:
            (tmp_path / "0").write_bytes(b"line\n" * 100_000)
            TailLog("t", {0: str(tmp_path / "0")}, terminal).start().stop()
            assert threading.active_count() == before
    finally:
        os.close(leader)
    assert "the console takes nothing" in caplog.text


def test_an_object_that_blocks_is_given_up_and_its_thread_ends_when_it_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    class Blocking(io.StringIO):
        def write(self, text: str) -> int:
            go_on.wait(60)
            return super().write(text)

    (tmp_path / "0").write_text("line\n")
    dst = Blocking()
    before = threading.active_count()
    tail = TailLog("t", {0: str(tmp_path / "0")}, dst).start()
    try:
        began = time.monotonic()
        tail.stop()
        assert time.monotonic() - began < 15
        assert "the console takes nothing" in caplog.text
    finally:
        go_on.set()
    wait_until(lambda: threading.active_count() == before)
    tail.stop()


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_a_console_that_broke_ends_the_copying_with_one_warning(
    tmp_path: Path, console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "0"
    tail = TailLog("t", {0: str(path)}, console.file).start()
    console.lose_reader()
    before = threading.active_count()
    _write(path, b"line\n" * 1000)
    wait_until(lambda: threading.active_count() < before)
    _write(path, b"more\n")
    tail.stop()
    (warning,) = _warnings(caplog)
    assert "Broken pipe" in warning
    assert str(path) in warning


def test_a_closed_object_ends_the_copying_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dst = io.StringIO()
    dst.close()
    (tmp_path / "0").write_text("line\n")
    TailLog("t", {0: str(tmp_path / "0")}, dst).start().stop()
    assert len(_warnings(caplog)) == 1


def test_a_filter_that_raises_is_logged_and_hurts_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(line: str) -> bool:
        raise RuntimeError("the filter is broken")

    (tmp_path / "0").write_text("line\n")
    TailLog("t", {0: str(tmp_path / "0")}, io.StringIO(), log_line_filter=broken).start().stop()
    assert "the filter is broken" in caplog.text


def test_too_few_descriptors_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        tail = TailLog("t", {0: str(tmp_path / "0")}, io.StringIO()).start()
        tail.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "the output of t is not shown" in caplog.text


def test_a_console_stuck_at_the_end_of_the_program_does_not_stick_the_program(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"line\n" * 100_000)
    program = (
        "import sys\n"
        "from agentd.elastic.multiprocessing.tail_log import TailLog\n"
        "tail = TailLog('t', {0: sys.argv[1]}, sys.stdout).start()\n"
        "sys.exit(3)\n"  # forgets the stop
    )
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "0")],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(read)
        os.close(write)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.parametrize("keep", [None, lambda line: "b" not in line])
def test_one_file_can_be_tailed_in_the_own_thread(tmp_path: Path, keep: object) -> None:
    out, finished = io.StringIO(), threading.Event()
    path = tmp_path / "0"
    thread = threading.Thread(target=tail_logfile, args=("> ", str(path), out, finished, 0.01, keep))
    thread.start()
    _write(path, b"a\nb\n")
    wait_until(lambda: "a" in out.getvalue())
    _write(path, b"the end")
    finished.set()
    thread.join(10)
    assert out.getvalue() == ("> a\n> b\n> the end\n" if keep is None else "> a\n> the end\n")
