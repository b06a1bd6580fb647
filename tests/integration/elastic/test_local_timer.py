"""Timers over a queue, as a user's program has them: the program runs as it is, and tells what it saw."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.elastic.timer import LocalTimerServer, MultiprocessingRequestQueue, TimerRequest, local_timer
from agentd.procs.identity import ProcessIdentity, send_signal
from tests.support.waiting import wait_until

PROGRAM = """
import multiprocessing, sys, time
from agentd.elastic import timer

def hangs(queue):
    timer.configure(timer.LocalTimerClient(queue))
    with timer.expires(after=0.3):
        time.sleep(1000)

def works(queue):
    timer.configure(timer.LocalTimerClient(queue))
    with timer.expires(after=60):
        pass
    with timer.expires(after=3):
        pass
    time.sleep(3.5)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    server = timer.LocalTimerServer(queue, max_interval=60)
    server.start()
    workers = [context.Process(target=target, args=(queue,)) for target in (hangs, works)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    began = time.monotonic()
    server.stop()
    print([worker.exitcode for worker in workers], time.monotonic() - began < 30)
"""


def test_the_worker_that_hangs_is_killed_and_the_other_is_not(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    told = subprocess.run(
        [sys.executable, str(program)], stdout=subprocess.PIPE, timeout=100, check=True, text=True
    )
    assert told.stdout.strip() == "[-9, 0] True"


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    worker = subprocess.Popen(["sleep", "1000"])
    yield worker
    worker.kill()
    worker.wait()


@pytest.fixture
def serve() -> Iterator[Callable[..., LocalTimerServer]]:
    servers: list[LocalTimerServer] = []

    def make(items: queue.Queue[object]) -> LocalTimerServer:
        servers.append(LocalTimerServer(items))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def test_items_that_are_no_requests_cost_nothing(
    worker: subprocess.Popen[bytes], serve: Callable[..., LocalTimerServer]
) -> None:
    items: queue.Queue[object] = queue.Queue()
    for item in (None, "text", TimerRequest("pid", "a", 1.0), TimerRequest(worker.pid, "a", 1.0)):
        items.put(item)
    serve(items)
    assert worker.wait(30) == -signal.SIGKILL


def test_a_reap_that_fails_is_tried_again(
    worker: subprocess.Popen[bytes], serve: Callable[..., LocalTimerServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fails_first(identity: ProcessIdentity, signum: int) -> bool:
        tries.append(identity.pid)
        return len(tries) > 1 and send_signal(identity, signum)

    monkeypatch.setattr(local_timer, "send_signal", fails_first)
    items: queue.Queue[object] = queue.Queue()
    items.put(TimerRequest(worker.pid, "a", 1.0))
    serve(items)
    assert worker.wait(30) == -signal.SIGKILL
    assert tries == [worker.pid] * 2


def test_a_reap_that_raises_counts_as_done() -> None:
    server = LocalTimerServer(queue.Queue())
    tries: list[int] = []

    def breaks(worker_id: int) -> bool:
        tries.append(worker_id)
        raise KeyError(worker_id)

    server._reap_worker = breaks  # type: ignore[method-assign]
    assert server._reap_worker_no_throw(7)
    assert tries == [7]


def test_the_process_of_the_server_is_not_killed(worker: subprocess.Popen[bytes]) -> None:
    server = LocalTimerServer(queue.Queue())
    server.register_timers([TimerRequest(os.getpid(), "a", 1.0), TimerRequest(worker.pid, "a", 1.0)])
    assert list(server.get_expired_timers(time.time())) == [worker.pid]


def test_a_queue_that_is_broken_for_good_does_not_spin_and_lets_the_server_stop() -> None:
    asked: list[float] = []

    class Broken(MultiprocessingRequestQueue):
        def size(self) -> int:
            asked.append(time.monotonic())
            raise OSError("handle is closed")

    server = LocalTimerServer(queue.Queue())
    server._request_queue = Broken(queue.Queue())
    server.start()
    wait_until(lambda: len(asked) >= 2)
    assert asked[1] - asked[0] > 0.5
    server.stop()
    server.stop()
    assert not any("LocalTimerServer" in thread.name for thread in threading.enumerate())
