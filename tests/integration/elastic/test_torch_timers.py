"""The same pipe, torch at the other end: its client in a worker of ours, its server over a client of ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentd.elastic import timer
from agentd.elastic.timer.local_timer import LocalTimerServer
from tests.integration.elastic.timing import EXPIRED, HANGS, TimerRig, exit_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.torch

TORCH_HANGS = HANGS.replace("from agentd.elastic", "from torch.distributed.elastic")
TORCH_SERVER = """
import sys, time
from torch.distributed.elastic.timer import FileTimerServer
tell = lambda *event: print(*event, flush=True)
server = FileTimerServer(sys.argv[1], "the-run", max_interval=0.1, log_event=tell)
server.start()
time.sleep(1000)
"""


@pytest.fixture
def torch_server(timers: TimerRig) -> Iterator[subprocess.Popen[bytes]]:
    """torch's own server in a process of its own, which it may kill."""
    server = subprocess.Popen(
        [sys.executable, "-c", TORCH_SERVER, timers.pipe], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert server.stdout is not None
        wait_until(lambda: os.path.exists(timers.pipe), 60)
        assert b"watchdog started" in server.stdout.readline()
        yield server
    finally:
        server.kill()
        server.communicate()


def test_torchs_client_in_a_worker_is_served_and_its_stacks_are_kept(timers: TimerRig) -> None:
    server = timers.server()
    worker = timers.worker(TORCH_HANGS, env={"PYTHONFAULTHANDLER": "1", "PATH": "/usr/bin:/bin"})
    assert exit_of(worker, 60) in (-signal.SIGABRT, -signal.SIGKILL)
    assert "the_hanging_function" in timers.stacks()
    wait_until(lambda: "kill worker process" in timers.names())
    assert re.search(EXPIRED, server.explain(worker.pid))


def test_torchs_client_that_releases_in_time_lives(timers: TimerRig) -> None:
    server = timers.server()
    code = TORCH_HANGS.replace("while True:", "for _ in ():") + "\ntime.sleep(3.5)"
    assert exit_of(timers.worker(code, env={"AFTER": "3"}), 60) == 0
    server.run_once()
    assert timers.names() == ["watchdog started"]
    assert server._is_client_started


def test_our_client_is_killed_by_torchs_server(
    timers: TimerRig, torch_server: subprocess.Popen[bytes]
) -> None:
    worker = timers.worker(env={"SIGNAL": str(int(signal.SIGTERM))})
    assert exit_of(worker, 60) == -signal.SIGTERM
    assert torch_server.stdout is not None
    assert b"timer expired" in torch_server.stdout.readline()


def test_our_client_releases_with_torchs_server(
    timers: TimerRig, torch_server: subprocess.Popen[bytes]
) -> None:
    code = HANGS.replace("while True:", "for _ in ():") + "\ntime.sleep(3.5)"
    assert exit_of(timers.worker(code, env={"AFTER": "3"}), 60) == 0
    assert torch_server.poll() is None


def test_requests_are_the_same_line_and_the_same_object_to_both() -> None:
    from torch.distributed.elastic.timer import file_based_local_timer as torch_timer

    ours = timer.FileTimerRequest(7, 'a "scope"\n', 1.5, 9)
    theirs = torch_timer.FileTimerRequest(7, 'a "scope"\n', 1.5, 9)
    assert ours.to_json() == theirs.to_json()


def test_requests_of_torchs_queue_client_are_understood(timers: TimerRig) -> None:
    from multiprocessing import SimpleQueue

    from torch.distributed.elastic.timer import local_timer as torch_timer

    queue: SimpleQueue[object] = SimpleQueue()
    server = LocalTimerServer(queue)  # type: ignore[arg-type]
    try:
        client: Any = torch_timer.LocalTimerClient
        client(queue).acquire("step", time.time() - 5)
        request = queue.get()
        worker = timers.worker("import time; time.sleep(1000)")
        request.worker_id = worker.pid  # type: ignore[attr-defined]
        server.register_timers([request])  # type: ignore[list-item]
        assert list(server.get_expired_timers(time.time())) == [worker.pid]
        assert server._reap_worker(worker.pid)
        assert exit_of(worker) == -signal.SIGKILL
    finally:
        queue.close()


def test_every_public_name_of_torchs_timers_is_here() -> None:
    import torch.distributed.elastic.timer as theirs
    import torch.distributed.elastic.timer.api as their_api
    import torch.distributed.elastic.timer.local_timer as their_local

    from agentd.elastic.timer import api, local_timer

    kinds = ("Timer", "configure", "expires", "Queue")
    wanted = [name for name in dir(theirs) if any(kind in name for kind in kinds)]
    assert wanted
    assert [name for name in wanted if not hasattr(timer, name)] == []
    assert set(their_api.__all__) <= set(api.__all__)
    assert set(their_local.__all__) <= set(local_timer.__all__)
