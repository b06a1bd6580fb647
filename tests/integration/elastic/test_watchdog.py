"""The watchdog of a round: on when the environment says so, on the agent's waiter, gone with the round."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.elastic.agent.server.watchdog import ENABLE_VARIABLE, FILE_VARIABLE, Watchdog
from agentd.elastic.timer import TimerPipeError
from agentd.procs.lineage import descends
from agentd.procs.stack_signal import SIGNAL_VARIABLE, default_signal
from agentd.procs.waiter import Waiter
from tests.integration.elastic.timing import EXPIRED, HANGS, TimerRig, exit_of

ON = {ENABLE_VARIABLE: "1"}


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    with Waiter() as waiter:
        yield waiter


def watchdog(env: dict[str, str], waiter: Waiter, **options: object) -> Watchdog | None:
    defaults: dict[str, object] = {
        "owns": lambda pid: descends(pid, os.getpid()),
        "stacks_dir_of": lambda _: "",
    }
    return Watchdog.from_env(env, run_id="the-run", waiter=waiter, **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "env", [{}, {ENABLE_VARIABLE: "0"}, {ENABLE_VARIABLE: "true"}, {FILE_VARIABLE: "/tmp/x"}]
)
def test_only_a_one_enables_it(env: dict[str, str], waiter: Waiter) -> None:
    assert watchdog(env, waiter) is None


def test_its_own_pipe_lies_where_only_this_user_comes_and_is_gone_after_stop(waiter: Waiter) -> None:
    dog = watchdog(ON, waiter)
    assert dog is not None
    folder = os.path.dirname(dog.path)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    threads = threading.active_count()
    dog.start()
    assert threading.active_count() == threads
    assert abs(dog.last_progress_time - time.time()) < 60
    dog.stop()
    dog.stop()
    assert not os.path.exists(folder)


def test_a_path_that_was_chosen_is_used_and_its_folder_stays(waiter: Waiter, tmp_path: Path) -> None:
    path = str(tmp_path / "mine")
    dog = watchdog({**ON, FILE_VARIABLE: path}, waiter)
    assert dog is not None
    assert dog.path == path
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    dog.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_taken_is_a_clear_error(waiter: Waiter, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(TimerPipeError, match=f"{path}.*{FILE_VARIABLE}"):
        watchdog({**ON, FILE_VARIABLE: str(path)}, waiter)
    assert path.read_text() == "data"


def test_no_place_for_temporary_files_is_a_clear_error(
    waiter: Waiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(TimerPipeError, match=f"TMPDIR.*{FILE_VARIABLE}"):
        watchdog(ON, waiter)


def test_workers_learn_of_the_pipe_and_how_to_tell_their_stacks(waiter: Waiter) -> None:
    dog = watchdog(ON, waiter)
    assert dog is not None
    assert dog.worker_env() == {
        FILE_VARIABLE: dog.path,
        SIGNAL_VARIABLE: str(default_signal()),
        "PYTHONFAULTHANDLER": "1",
    }
    dog.stop()


def test_what_the_user_has_set_is_left_as_it_is(waiter: Waiter) -> None:
    dog = watchdog({**ON, "PYTHONFAULTHANDLER": "", SIGNAL_VARIABLE: "50"}, waiter)
    assert dog is not None
    assert dog.worker_env() == {FILE_VARIABLE: dog.path}
    dog.stop()


def test_a_shell_that_runs_the_hanging_program_is_told_why_and_has_the_stacks(
    timers: TimerRig, waiter: Waiter
) -> None:
    logs = timers.logs()
    folders: dict[int, str] = {}
    dog = watchdog({**ON, FILE_VARIABLE: timers.pipe}, waiter, stacks_dir_of=folders.__getitem__)
    assert dog is not None
    dog.start()
    (timers.folder / "hangs.py").write_text(HANGS)
    script = f"{sys.executable} hangs.py; exit 5"
    shell = timers.worker(script, env=dog.worker_env(), program="sh")
    folders[shell.pid] = str(logs)
    assert waiter.wait_until(lambda: shell.poll() is not None, time.monotonic() + 60)
    assert exit_of(shell) == 5
    assert "the_hanging_function" in timers.stacks()
    text = dog.explain(shell.pid)
    stacks = re.escape(f"; its stacks are in {logs}/stacks.txt")
    assert re.fullmatch(rf"the watchdog ended process \d+ below it: {EXPIRED}{stacks}", text)
    dog.stop()
    assert dog.explain(shell.pid) == text, "the question may come after the round"


def test_a_process_outside_the_group_is_not_signalled(timers: TimerRig, waiter: Waiter) -> None:
    dog = watchdog({**ON, FILE_VARIABLE: timers.pipe}, waiter, owns=lambda _pid: False)
    assert dog is not None
    dog.start()
    worker = timers.worker("import time; time.sleep(1000)")
    timers.send(worker.pid)
    waiter.wait(time.monotonic())
    waiter.wait(time.monotonic())
    dog.stop()
    assert worker.poll() is None
    assert dog.explain(worker.pid) == ""


def test_rounds_that_follow_each_other_use_the_same_path(timers: TimerRig, waiter: Waiter) -> None:
    before = waiter.descriptors()
    for _ in range(3):
        dog = watchdog({**ON, FILE_VARIABLE: timers.pipe}, waiter)
        assert dog is not None
        dog.start()
        worker = timers.worker("import time; time.sleep(1000)")
        timers.send(worker.pid)
        assert waiter.wait_until(lambda child=worker: child.poll() is not None, time.monotonic() + 60)  # type: ignore[misc]
        assert worker.returncode == -signal.SIGKILL
        dog.stop()
    assert waiter.descriptors() == before


def test_an_agent_without_a_watchdog_pays_nothing_for_it() -> None:
    code = (
        "import sys, agentd.elastic.agent.server.watchdog as dog\n"
        "assert dog.Watchdog.from_env({}, run_id='', waiter=None, owns=None, stacks_dir_of=None) is None\n"
        "print(*[name for name in sys.modules if name.startswith('agentd.elastic.timer.file')])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True, text=True
    )
    assert told.stdout.strip() == ""
