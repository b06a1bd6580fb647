"""The server of the timer pipe: who is killed, who is not, and what it tells."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from agentd.elastic.timer import FileTimerRequest, FileTimerServer, debug_info_logging, file_server, reaper
from agentd.procs.identity import ProcessIdentity, identify, send_signal
from agentd.procs.waiter import Waiter
from tests.integration.elastic.timing import ASKS_FOR_STACKS, EXPIRED, HANGS, TimerRig, exit_of, quiet_worker
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_py_spy")


def test_a_worker_that_hangs_is_killed_and_its_stacks_name_the_function(timers: TimerRig) -> None:
    server = timers.server()
    sibling = timers.worker(name="sibling", env={"AFTER": "1000"})
    bystander = quiet_worker(timers)
    worker = timers.worker(env=ASKS_FOR_STACKS)
    assert exit_of(worker) == -signal.SIGKILL
    wait_until(lambda: "kill worker process" in timers.names())
    assert "the_hanging_function" in timers.stacks()
    assert "by faulthandler" in timers.stacks()
    wait_until((timers.folder / f"hangs.{sibling.pid}").exists)
    assert sibling.poll() is None
    assert bystander.poll() is None
    stacks = re.escape(f"; its stacks are in {timers.logs()}/stacks.txt")
    assert re.fullmatch(f"the watchdog ended it: {EXPIRED}{stacks}", server.explain(worker.pid))
    assert server.explain(sibling.pid) == ""


def test_it_tells_what_happens_in_the_order_and_words_of_torch(timers: TimerRig) -> None:
    server = timers.server()
    worker = timers.worker()
    exit_of(worker)
    wait_until(lambda: "kill worker process" in timers.names())
    server.stop()
    server.stop()
    words = ["watchdog started", "timer expired", "kill worker process", "watchdog stopped"]
    assert timers.names() == words
    requests = [request for _, request in timers.events if request is not None]
    assert [(request.worker_pid, request.scope_id, request.signal) for request in requests] == [
        (worker.pid, "step", 9)
    ] * 2


def test_a_worker_that_releases_in_time_lives(timers: TimerRig) -> None:
    timers.server()
    code = HANGS.replace("while True:", "for _ in ():")
    again = "\nwith timer.expires(after=60): pass\ntime.sleep(3.5)"
    assert exit_of(timers.worker(code + again, env={"AFTER": "3"})) == 0
    assert timers.names() == ["watchdog started"]


def test_on_a_waiter_it_needs_no_thread_and_never_blocks_it(timers: TimerRig) -> None:
    with Waiter() as waiter:
        server = timers.server(waiter=waiter)
        before = threading.active_count()
        worker = timers.worker(env=ASKS_FOR_STACKS)
        longest, ends = 0.0, time.monotonic() + 60
        while worker.poll() is None and time.monotonic() < ends:
            began = time.monotonic()
            waiter.wait(began)
            longest = max(longest, time.monotonic() - began)
            waiter.wait(time.monotonic() + 0.05)
        assert worker.returncode == -signal.SIGKILL
        assert "the_hanging_function" in timers.stacks()
        assert threading.active_count() == before
        assert longest < 10.0
        server.stop()


def test_twenty_workers_that_hang_together_are_all_looked_at_and_killed(timers: TimerRig) -> None:
    timers.server()
    env = {**ASKS_FOR_STACKS, "AFTER": "1000"}
    workers = [timers.worker(name=str(n), env=env) for n in range(20)]
    wait_until(lambda: len(list(timers.folder.glob("hangs.*"))) == 20, 60)
    # All at one moment, told in one go.
    now = time.time()
    again = [FileTimerRequest(worker.pid, "step", now, 9).to_json() for worker in workers]
    timers.write("".join(f"{line}\n" for line in again).encode())
    assert {exit_of(worker) for worker in workers} == {-signal.SIGKILL}
    for n in range(20):
        assert "the_hanging_function" in timers.stacks(str(n))
    wait_until(lambda: timers.names().count("kill worker process") == 20)
    killed_after = timers.names().index("kill worker process")
    assert timers.names()[:killed_after].count("timer expired") == 20, "one died before all were looked at"


def test_a_peer_whose_time_is_up_a_moment_later_is_looked_at_before_the_first_is_killed(
    timers: TimerRig,
) -> None:
    timers.server()
    workers = [timers.worker(name=str(n), env={**ASKS_FOR_STACKS, "AFTER": "1000"}) for n in range(2)]
    wait_until(lambda: len(list(timers.folder.glob("hangs.*"))) == 2, 60)
    now = time.time()
    ends = zip(workers, (now + 1.0, now + 1.2), strict=True)
    again = [FileTimerRequest(worker.pid, "step", end, 9).to_json() for worker, end in ends]
    timers.write("".join(f"{line}\n" for line in again).encode())
    assert [exit_of(worker) for worker in workers] == [-signal.SIGKILL] * 2
    for name in "01":
        assert "the_hanging_function" in timers.stacks(name)
    wait_until(lambda: timers.names().count("kill worker process") == 2)
    assert timers.names()[1:3] == ["timer expired"] * 2


def test_a_signal_that_is_asked_for_is_the_one_that_is_sent(timers: TimerRig) -> None:
    timers.server()
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" + HANGS
    assert exit_of(timers.worker(code, env={"SIGNAL": str(int(signal.SIGTERM))})) == 7


def test_a_timer_without_a_signal_is_only_told_of(timers: TimerRig) -> None:
    timers.server()
    worker = timers.worker(env={"SIGNAL": "0"})
    wait_until(lambda: "timer expired" in timers.names())
    timers.send(worker.pid, scope="second", signal=-3)
    wait_until(lambda: timers.names().count("timer expired") == 2)
    assert worker.poll() is None
    assert "kill worker process" not in timers.names()


def test_strangers_and_the_server_itself_are_never_signalled(
    timers: TimerRig, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _frame: got.append(number))
    script = "sleep 1000 >/dev/null 2>&1 & echo $!"
    stranger = int(subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True).stdout)
    try:
        timers.server()
        timers.send(stranger)
        timers.send(os.getpid(), signal=signal.SIGUSR1)
        timers.send(1)
        worker = quiet_worker(timers)
        timers.send(worker.pid)
        assert exit_of(worker) == -signal.SIGKILL
        os.kill(stranger, 0)
        assert got == []
        assert timers.names().count("timer expired") == 1
        assert "outside the group" in caplog.text
    finally:
        signal.signal(signal.SIGUSR1, previous)
        os.kill(stranger, signal.SIGKILL)


def test_who_belongs_to_the_group_is_the_owners_word(timers: TimerRig) -> None:
    outside, inside = quiet_worker(timers, "outside"), quiet_worker(timers, "inside")
    timers.server(owns=lambda pid: pid == inside.pid)
    timers.send(outside.pid)
    timers.send(inside.pid)
    assert exit_of(inside) == -signal.SIGKILL
    assert outside.poll() is None


def test_a_new_process_with_an_old_pid_is_not_killed_for_the_old_one(
    timers: TimerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir, witness = quiet_worker(timers, "heir"), quiet_worker(timers, "witness")

    def another_before(pid: int) -> ProcessIdentity | None:
        return ProcessIdentity(pid, 1) if pid == heir.pid else identify(pid)

    monkeypatch.setattr(file_server, "identify", another_before)
    timers.server()
    timers.send(heir.pid)
    timers.send(heir.pid, after=0.01, scope="second")
    timers.send(witness.pid, after=0.1)
    assert exit_of(witness) == -signal.SIGKILL
    assert heir.poll() is None
    assert timers.names().count("timer expired") == 1


def test_a_kill_that_fails_is_tried_again(timers: TimerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    real = send_signal

    def fails_first(identity: ProcessIdentity, signum: int) -> bool:
        tries.append(signum)
        return len(tries) > 2 and real(identity, signum)

    monkeypatch.setattr(reaper, "send_signal", fails_first)
    monkeypatch.setattr(reaper, "RETRY_S", 0.05)
    timers.server()
    worker = quiet_worker(timers)
    timers.send(worker.pid)
    assert exit_of(worker) == -signal.SIGKILL
    wait_until(lambda: "kill worker process" in timers.names())
    assert tries == [9, 9, 9]
    assert timers.names().count("kill worker process") == 1


def test_a_worker_that_is_gone_when_its_time_is_up_is_not_told_of(timers: TimerRig) -> None:
    timers.server()
    gone, witness = quiet_worker(timers, "gone"), quiet_worker(timers, "witness")
    timers.send(gone.pid, after=3.0)
    gone.kill()
    gone.wait()
    timers.send(witness.pid, after=3.1)
    exit_of(witness)
    assert timers.names().count("timer expired") == 1


def test_garbage_of_all_kinds_costs_a_warning_and_no_valid_line(
    timers: TimerRig, caplog: pytest.LogCaptureFixture
) -> None:
    server = timers.server()
    worker = quiet_worker(timers)
    timers.write(b"\xff\x00 no line\n{}\n")
    timers.write(b'{"version": 1, "pid": 3, "sco')
    timers.send(worker.pid, after=1000.0, scope="kept")
    timers.write(b"x" * 10_000_000 + b"\n")
    timers.write(b'{"pid": NaN}\n[1, 2\n')
    timers.send(worker.pid)
    assert exit_of(worker) == -signal.SIGKILL
    server.stop()
    complaints = [
        record.getMessage() for record in caplog.records if "were no requests" in record.getMessage()
    ]
    assert len(complaints) == 1, "garbage is told once a period"


def test_callbacks_that_raise_harm_nobody(timers: TimerRig, caplog: pytest.LogCaptureFixture) -> None:
    def breaks(*_: object) -> str:
        raise KeyError("mine")

    timers.events = None  # type: ignore[assignment]
    server = timers.server(stacks_dir_of=breaks)
    worker = timers.worker()
    assert exit_of(worker) == -signal.SIGKILL
    server.stop()
    assert "log_event raised" in caplog.text
    assert "stacks_dir_of raised" in caplog.text
    assert server.explain(worker.pid).endswith("after it was set")


def test_an_owner_callback_that_raises_signals_nobody(timers: TimerRig) -> None:
    def breaks(_pid: int) -> bool:
        raise KeyError("mine")

    server = timers.server(started=False, owns=breaks)
    worker = quiet_worker(timers)
    timers.send(worker.pid)
    server.run_once()
    assert worker.poll() is None
    assert timers.names() == []


def test_run_once_serves_what_waits_and_leaves_nothing(timers: TimerRig) -> None:
    server = timers.server()
    worker = quiet_worker(timers)
    timers.send(worker.pid)
    server.run_once()
    assert exit_of(worker) == -signal.SIGKILL
    assert not Path(timers.pipe).exists()
    server.stop()
    assert "watchdog stopped" not in timers.names()


def test_progress_is_now_until_a_client_came_and_then_the_last_turn(timers: TimerRig) -> None:
    server = timers.server(started=False)
    server._last_progress_time = 7
    assert abs(server.get_last_progress_time() - time.time()) < 60
    server.start()
    timers.send(os.getpid())
    wait_until(lambda: server._is_client_started)
    first = server.get_last_progress_time()
    wait_until(lambda: server.get_last_progress_time() > first)
    assert server.get_last_progress_time() <= time.time()


def test_a_server_that_was_stopped_says_that_it_does_not_start_again(timers: TimerRig) -> None:
    server = timers.server()
    server.stop()
    with pytest.raises(RuntimeError, match="make a new one"):
        server.start()


def test_a_process_that_waits_to_be_reaped_does_not_run(timers: TimerRig) -> None:
    worker = quiet_worker(timers)
    assert FileTimerServer.is_process_running(worker.pid)
    worker.kill()
    wait_until(lambda: not FileTimerServer.is_process_running(worker.pid))
    worker.wait()
    assert not FileTimerServer.is_process_running(worker.pid)


def test_the_debug_hook_gets_the_run_and_the_requests(
    timers: TimerRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[tuple[str, dict[int, list[str]]]] = []
    hook = "log_debug_info_for_expired_timers"
    monkeypatch.setattr(debug_info_logging, hook, lambda *args: seen.append(args))
    server = timers.server(started=False)
    worker = quiet_worker(timers)
    request = FileTimerRequest(worker.pid, "raw", 5.0, 9)
    timers.write(request.to_json().encode() + b"\n")
    server.run_once()
    assert seen == [("the-run", {worker.pid: [request.to_json()]})]


def test_timers_can_be_given_and_asked_for_without_the_pipe(timers: TimerRig) -> None:
    server = timers.server(started=False)
    worker = quiet_worker(timers)
    now = time.time()
    request = FileTimerRequest(worker.pid, "a", now + 100, 9)
    server.register_timers([request, FileTimerRequest(worker.pid, "b", now + 200, 9)])
    assert server.get_expired_timers(now + 50) == {}
    assert server.get_expired_timers(now + 150) == {worker.pid: [request]}
    server.register_timers([FileTimerRequest(worker.pid, "a", -1)])
    assert server.get_expired_timers(now + 150) == {}
    server.clear_timers({worker.pid})
    assert server.get_expired_timers(now + 250) == {}
