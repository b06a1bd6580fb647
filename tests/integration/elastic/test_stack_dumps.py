"""What is known of a worker before it is killed, by whom, and that finding out never takes long."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

import pytest

from agentd.procs import kernel_view, stacks
from agentd.procs.identity import identify
from agentd.procs.stack_signal import SIGNAL_VARIABLE, open_sheet
from tests.integration.elastic.timing import (
    ASKS_FOR_STACKS,
    HANGS,
    RAW_HANGS,
    TimerRig,
    exit_of,
    quiet_worker,
)
from tests.support.waiting import wait_until


def put_py_spy_on_path(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "py-spy"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_py_spy_is_asked_first_if_it_is_there(timers: TimerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    put_py_spy_on_path(timers.folder, 'echo "Thread of $*: told by the spy"', monkeypatch)
    timers.server()
    worker = timers.worker(env=ASKS_FOR_STACKS)
    assert exit_of(worker) == -signal.SIGKILL
    text = timers.stacks()
    assert f"by py-spy\nThread of dump --pid {worker.pid}: told by the spy" in text
    assert "the_hanging_function" not in text


def test_a_py_spy_that_fails_leaves_it_to_the_process_itself(
    timers: TimerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_py_spy_on_path(timers.folder, "echo no permission >&2; exit 1", monkeypatch)
    timers.server()
    assert exit_of(timers.worker(env=ASKS_FOR_STACKS)) == -signal.SIGKILL
    text = timers.stacks()
    assert "by faulthandler" in text
    assert "the_hanging_function" in text
    assert "no permission" in text


@pytest.mark.parametrize("script", ["exec sleep 1000", "exec yes"])
def test_a_py_spy_that_never_ends_is_ended(
    timers: TimerRig, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(stacks, "PY_SPY_BOUND_S", 0.5)
    put_py_spy_on_path(timers.folder, script, monkeypatch)
    timers.server()
    assert exit_of(timers.worker(env=ASKS_FOR_STACKS)) == -signal.SIGKILL
    text = timers.stacks()
    assert "the_hanging_function" in text
    assert "did not come to an end" in text
    assert len(text) < 3 * stacks.MOST_BYTES


def test_a_server_that_stops_while_it_looks_kills_at_once_and_leaves_no_helper(
    timers: TimerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "PY_SPY_BOUND_S", 1000.0)
    put_py_spy_on_path(timers.folder, f"touch {timers.folder}/spying; exec sleep 1000", monkeypatch)
    server = timers.server()
    worker = timers.worker(env=ASKS_FOR_STACKS)
    wait_until((timers.folder / "spying").exists)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 60.0
    assert exit_of(worker) == -signal.SIGKILL
    assert timers.names()[-2:] == ["kill worker process", "watchdog stopped"]


@pytest.mark.usefixtures("no_py_spy")
def test_a_worker_that_nobody_prepared_tells_by_sigabrt_and_leaves_no_core(timers: TimerRig) -> None:
    timers.server()
    code = f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\n{RAW_HANGS}"
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    code = code.replace("(-1, -1)", f"({hard}, {hard})")
    worker = timers.worker(code, env={"PYTHONFAULTHANDLER": "1"})
    assert exit_of(worker) == -signal.SIGABRT
    text = timers.stacks()
    assert "by faulthandler on SIGABRT" in text
    assert "the_hanging_function" in text
    assert list(timers.folder.glob("core*")) == []
    assert "expired" in timers.servers[0].explain(worker.pid)
    wait_until(lambda: timers.names().count("kill worker process") == 1)


@pytest.mark.usefixtures("no_py_spy")
def test_sigabrt_is_not_used_where_another_signal_is_asked_for(timers: TimerRig) -> None:
    timers.server()
    code = RAW_HANGS.replace("signal=9", "signal=15")
    assert exit_of(timers.worker(code, env={"PYTHONFAULTHANDLER": "1"})) == -signal.SIGTERM
    assert "Fatal Python error" not in timers.stacks()


@pytest.mark.usefixtures("no_py_spy", "no_answer")
def test_a_worker_that_survives_sigabrt_gets_sigkill(timers: TimerRig) -> None:
    timers.server()
    code = f"import signal; signal.signal(signal.SIGABRT, lambda *_: None)\n{RAW_HANGS}"
    assert exit_of(timers.worker(code)) == -signal.SIGKILL


@pytest.mark.usefixtures("no_py_spy")
def test_where_nobody_can_tell_there_is_still_the_kernels_view(timers: TimerRig) -> None:
    timers.server()
    worker = timers.worker(RAW_HANGS, env={"PYTHONFAULTHANDLER": ""})
    assert exit_of(worker) == -signal.SIGKILL
    text = timers.stacks()
    assert "install py-spy" in text
    assert f"thread {worker.pid} (python" in text
    assert "state S (sleeping)" in text


@pytest.mark.usefixtures("no_py_spy", "no_answer")
def test_a_worker_stopped_by_sigstop_is_killed_all_the_same(timers: TimerRig) -> None:
    timers.server()
    worker = timers.worker(env={**ASKS_FOR_STACKS, "AFTER": "1000"})
    wait_until((timers.folder / f"hangs.{worker.pid}").exists)
    worker.send_signal(signal.SIGSTOP)
    wait_until(lambda: "T (stopped)" in kernel_view.describe_threads(worker.pid))
    timers.send(worker.pid)
    assert exit_of(worker) == -signal.SIGKILL
    assert "T (stopped)" in timers.stacks()


@pytest.mark.usefixtures("no_py_spy")
def test_a_folder_that_cannot_be_written_costs_the_stacks_and_not_the_kill(
    timers: TimerRig, caplog: pytest.LogCaptureFixture
) -> None:
    server = timers.server(stacks_dir_of=lambda _pid: "/proc/none")
    worker = timers.worker(env=ASKS_FOR_STACKS)
    assert exit_of(worker) == -signal.SIGKILL
    server.stop()
    assert "could not be written" in caplog.text


def test_a_look_that_breaks_costs_the_stacks_and_not_the_kill(
    timers: TimerRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_pid: int) -> str:
        raise OSError("too many open files")

    monkeypatch.setattr(kernel_view, "describe_threads", breaks)
    server = timers.server()
    worker = timers.worker(env=ASKS_FOR_STACKS)
    assert exit_of(worker) == -signal.SIGKILL
    server.stop()
    assert "it is killed without" in caplog.text
    assert timers.names().count("kill worker process") == 1


def test_a_process_answers_only_where_it_was_asked_to(timers: TimerRig) -> None:
    timers.server(started=False)
    asked = timers.worker(env={**ASKS_FOR_STACKS, "AFTER": "1000"}, name="asked")
    plain = timers.worker(env={SIGNAL_VARIABLE: "", "AFTER": "1000"}, name="plain")
    for worker in (asked, plain):
        wait_until((timers.folder / f"hangs.{worker.pid}").exists)
    signum = int(ASKS_FOR_STACKS[SIGNAL_VARIABLE])
    sheet = open_sheet(asked.pid)
    assert sheet is not None
    sheet.close()
    assert sheet.signum == signum
    assert open_sheet(plain.pid) is None
    assert not kernel_view.catches(plain.pid, signum)


def test_a_signal_the_worker_uses_itself_is_left_to_it(timers: TimerRig) -> None:
    timers.server(started=False)
    signum = int(ASKS_FOR_STACKS[SIGNAL_VARIABLE])
    mine = f"import signal, sys; signal.signal({signum}, lambda *_: sys.exit(3))\n"
    worker = timers.worker(mine + HANGS, env={**ASKS_FOR_STACKS, "AFTER": "1000"})
    wait_until((timers.folder / f"hangs.{worker.pid}").exists)
    assert open_sheet(worker.pid) is None
    worker.send_signal(signum)
    assert exit_of(worker) == 3


@pytest.mark.usefixtures("no_answer")
def test_the_steps_of_a_dump_end_in_time_by_their_runners_clock_whatever_the_process_does(
    timers: TimerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_py_spy_on_path(timers.folder, "exec sleep 1000", monkeypatch)
    worker = quiet_worker(timers)
    identity = identify(worker.pid)
    assert identity is not None
    helpers, now = stacks.Helpers(), 100.0
    steps = stacks.collect(identity, now, helpers)
    pause, found = next(steps), None
    while found is None:
        now += pause
        assert now <= 100.0 + stacks.COLLECT_BOUND_S + stacks.LOOK_S
        try:
            pause = steps.send(now)
        except StopIteration as end:
            found = end.value
    assert "did not come to an end" in found.notes
    helpers.close()


def test_a_process_that_is_gone_has_nothing_to_tell() -> None:
    assert kernel_view.describe_threads(1 << 22) == ""
    assert not kernel_view.catches(1 << 22, 15)
    assert kernel_view.threads_blocking(1 << 22, 15) == frozenset()
    assert open_sheet(1 << 22) is None
