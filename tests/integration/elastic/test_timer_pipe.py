"""The timer pipe itself and the client at its other end: whose it is, and that nobody ever waits long."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentd.elastic.timer import FileTimerClient, FileTimerRequest, FileTimerServer, TimerPipeError
from agentd.elastic.timer.pipe import TimerPipe
from tests.integration.elastic.timing import TimerRig, exit_of, quiet_worker
from tests.support.waiting import wait_until

CLIENT_BOUND_S = 1.0
"""Ten tries, a tenth of a second apart; less than that in sum."""
SLACK_S = 30.0


def refused(client: FileTimerClient) -> str:
    """What the client says of a server that takes nothing, after a bounded time."""
    began = time.monotonic()
    with pytest.raises(BrokenPipeError) as error:
        client.acquire("step", time.time() + 10)
    assert 0.8 < time.monotonic() - began < CLIENT_BOUND_S + SLACK_S
    return str(error.value)


def fill_up(path: str) -> None:
    """Write short lines for no timer until not one more fits."""
    line = FileTimerRequest(1, "", 1.0, 0).to_json().encode() + b"\n"
    with open(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb", buffering=0) as end:
        while end.write(line):
            pass


def test_only_its_user_can_open_the_pipe(timers: TimerRig) -> None:
    timers.server(started=False)
    found = os.stat(timers.pipe)
    assert stat.S_ISFIFO(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_a_pipe_that_a_dead_server_left_is_replaced(timers: TimerRig) -> None:
    code = "import os, sys; from agentd.elastic.timer import *; FileTimerServer(sys.argv[1], ''); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, timers.pipe], check=True, timeout=60)
    left = os.stat(timers.pipe).st_ino, os.stat(timers.pipe).st_mtime_ns
    timers.server()
    assert (os.stat(timers.pipe).st_ino, os.stat(timers.pipe).st_mtime_ns) != left
    worker = quiet_worker(timers)
    timers.send(worker.pid)
    assert exit_of(worker) == -9


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_pipe_is_never_removed(timers: TimerRig, kind: str) -> None:
    path, target = Path(timers.pipe), timers.folder / "precious"
    target.write_text("data")
    if kind == "file":
        path.write_text("data")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    with pytest.raises(TimerPipeError, match=r"no named pipe.*Give another path"):
        timers.server()
    assert os.path.lexists(path)
    assert target.read_text() == "data"


def test_two_servers_do_not_share_a_pipe(timers: TimerRig) -> None:
    timers.server()
    with pytest.raises(TimerPipeError, match="another agent"):
        timers.server()
    worker = quiet_worker(timers)
    timers.send(worker.pid)
    assert exit_of(worker) == -9, "the first server goes on"


def test_a_missing_folder_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(TimerPipeError, match="No such file") as error:
        FileTimerServer(str(tmp_path / "missing" / "timer"), "run")
    assert error.value.path.endswith("missing/timer")


def test_stopping_leaves_alone_what_somebody_else_put_at_the_path(timers: TimerRig) -> None:
    server = timers.server()
    os.unlink(timers.pipe)
    Path(timers.pipe).write_text("theirs")
    server.stop()
    assert Path(timers.pipe).read_text() == "theirs"


def test_a_stopped_server_leaves_no_pipe(timers: TimerRig) -> None:
    timers.server().stop()
    assert not os.path.lexists(timers.pipe)


def test_a_server_whose_clients_are_gone_sleeps(timers: TimerRig) -> None:
    timers.server()
    timers.send(1)
    before, ends = time.process_time(), time.monotonic() + 1.0
    wait_until(lambda: time.monotonic() >= ends)
    assert time.process_time() - before < 0.4


def test_a_client_whose_server_was_never_there_gives_up_soon(timers: TimerRig) -> None:
    assert "there is no pipe" in refused(FileTimerClient(timers.pipe))


def test_a_client_whose_server_died_gives_up_soon(timers: TimerRig) -> None:
    os.mkfifo(timers.pipe)
    assert "nobody reads the pipe" in refused(FileTimerClient(timers.pipe))


def test_a_client_with_a_file_instead_of_a_pipe_writes_nothing_into_it(timers: TimerRig) -> None:
    Path(timers.pipe).write_text("data")
    assert "no named pipe" in refused(FileTimerClient(timers.pipe))
    assert Path(timers.pipe).read_text() == "data"


def test_a_full_pipe_neither_blocks_the_client_nor_costs_the_server_a_line(timers: TimerRig) -> None:
    server = timers.server(started=False)
    client = FileTimerClient(timers.pipe)
    worker = quiet_worker(timers)
    timers.send(worker.pid)
    fill_up(timers.pipe)
    assert "the pipe is full" in refused(client)
    server.start()
    assert exit_of(worker) == -9
    client.acquire("step", time.time() + 10)


def test_a_client_that_is_earlier_than_its_server_waits_for_it(timers: TimerRig) -> None:
    worker = quiet_worker(timers)
    early = threading.Thread(target=timers.send_by_client, args=(worker.pid,))
    early.start()
    timers.server()
    early.join(60)
    assert exit_of(worker) == -9


def test_a_request_that_could_be_torn_is_refused_at_once(timers: TimerRig) -> None:
    server = timers.server(started=False)
    client = FileTimerClient(timers.pipe)
    fits = select.PIPE_BUF - 1 - len(FileTimerRequest(os.getpid(), "", 1.0, 9).to_json())
    client.acquire("x" * fits, 1.0)
    with pytest.raises(RuntimeError, match="shorter scope"):
        client.acquire("x" * (fits + 1), 1.0)
    server.run_once()


def test_many_writers_at_once_tear_no_line(timers: TimerRig) -> None:
    server = timers.server()
    code = """
import os, time
from agentd.elastic import timer
from agentd.elastic.timer import file_client
file_client.TRIES = 600  # the server may be held up for longer than a client waits
client = timer.FileTimerClient(os.environ["TORCHELASTIC_TIMER_FILE"])
for n in range(200):
    client.acquire("scope" * (n % 50), time.time() + 1000)
    client.release("scope" * (n % 50))
"""
    workers = [timers.worker(code, str(n)) for n in range(4)]
    assert [exit_of(worker, 60) for worker in workers] == [0] * 4
    server.run_once()
    assert server._lines.take_garbage() == 0
    assert len(server._book) == 0


def test_a_reader_of_a_flood_comes_back_to_its_other_work(tmp_path: Path) -> None:
    pipe = TimerPipe(str(tmp_path / "timer"))
    flood = subprocess.Popen(["sh", "-c", f"exec yes > {tmp_path}/timer"], start_new_session=True)
    try:
        wait_until(lambda: len(pipe.read()) > 0)
        assert len(pipe.read()) <= 1 << 20
    finally:
        flood.kill()
        flood.wait()
        pipe.close()
        pipe.close()
