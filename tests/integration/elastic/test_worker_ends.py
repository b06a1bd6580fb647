"""However a worker ends, program or function: the result, the report and the process table are right."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic import LocalElasticAgent, RunResult, WorkerSpec, WorkerState
from agentd.elastic.agent.server.uninterruptible import StateWatch
from agentd.elastic.multiprocessing import DefaultLogsSpecs, Std
from agentd.elastic.multiprocessing.errors import ChildFailedError
from agentd.elastic.rendezvous.in_memory import InMemoryRendezvous
from agentd.procs.procfs import ProcessStat, is_finished, processes, read_environ, read_stat
from tests.integration.elastic import functions
from tests.support.waiting import wait_until

MEGABYTE = 1 << 20
KINDS = ("program", "function")
both_kinds = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class End:
    """One way to end, as a program and as a function, and what is to be known of it."""

    script: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    exitcode: int = 0
    """Of the failure; 0: there is none."""
    message: str = ""
    """In the report."""


PYTHON = f"exec {sys.executable} -c"

ENDS = {
    "exit 0": End("exit 0", functions.leave, ("sys.exit", 0)),
    "exit 3": End("exit 3", functions.leave, ("sys.exit", 3), 3, "exitcode  : 3"),
    "raise": End(
        f"{PYTHON} 'raise ArithmeticError(\"asked to raise it\")'",
        functions.leave,
        ("raise", "it"),
        1,
        "ArithmeticError",
    ),
    "SIGKILL": End(
        "kill -9 $$", functions.leave, ("signal", signal.SIGKILL), -9, "Signal 9 (SIGKILL) received by PID"
    ),
    "SIGSEGV": End("kill -SEGV $$", functions.leave, ("fault",), -11, "SIGSEGV"),
    "a grandchild is left": End("sleep 1000 &", functions.leave_grandchild),
    "stdout is closed": End("exec >&-; exit 0", functions.close_stdout),
    "invalid UTF-8": End("printf '\\377\\376 \\200\\n'", functions.print_garbage),
    "100 MB without newline": End(
        f"head -c {100 * MEGABYTE} /dev/zero | tr '\\0' x", functions.print_without_newline, (100,)
    ),
}


class Runs:
    """Runs agents with one worker, or a few, and knows what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = f"OF_TEST_{os.urandom(8).hex()}"
        self.agent: LocalElasticAgent | None = None

    def run(self, entrypoint: Any, *args: Any, size: int = 1, **options: Any) -> RunResult:
        env = {**os.environ, self.marker: "1", "FOLDER": str(self.folder), **options.pop("env", {})}
        spec = WorkerSpec(
            role="trainer",
            local_world_size=size,
            rdzv_handler=InMemoryRendezvous("the-run", 1).handler(),
            entrypoint=entrypoint,
            args=args,
            max_restarts=0,
        )
        logs = DefaultLogsSpecs(str(self.folder / "logs"), redirects=Std.ALL)
        self.agent = LocalElasticAgent(
            spec, logs, shutdown_timeout=options.pop("grace", 20.0), base_env=env, **options
        )
        return self.agent.run()

    def left(self) -> list[ProcessStat]:
        marker = self.marker.encode()
        return [stat for stat in processes() if not is_finished(stat) and marker in read_environ(stat.pid)]

    def log(self, name: str, rank: int = 0) -> Path:
        return next((self.folder / "logs").glob(f"*/attempt_0/{rank}/{name}"))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path)
    yield runs
    wait_until(lambda: not runs.left(), what="nothing of the workers is left")


@both_kinds
@pytest.mark.parametrize("name", ENDS)
def test_an_end_is_told_as_it_was_and_leaves_no_process(runs: Runs, kind: str, name: str) -> None:
    end = ENDS[name]
    result = runs.run("sh", "-c", end.script) if kind == "program" else runs.run(end.function, *end.args)
    assert not runs.left()
    if end.exitcode == 0:
        assert (result.state, dict(result.failures)) == (WorkerState.SUCCEEDED, {})
        assert set(result.return_values) == {0}
        return
    assert result.is_failed()
    assert [failure.exitcode for failure in result.failures.values()] == [end.exitcode]
    report = str(ChildFailedError("trainer", result.failures))
    assert end.message in report
    assert "trainer FAILED" in report


@both_kinds
def test_what_is_printed_is_in_the_log_to_the_last_byte(runs: Runs, kind: str) -> None:
    if kind == "program":
        runs.run("sh", "-c", ENDS["100 MB without newline"].script)
    else:
        runs.run(functions.print_without_newline, 100)
    assert runs.log("stdout.log").stat().st_size == 100 * MEGABYTE
    shutil.rmtree(runs.folder / "logs")


@both_kinds
def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(runs: Runs, kind: str) -> None:
    """The other worker fails; this one has to be killed, and is no failure of its own."""
    wait_then_fail = f"while [ ! -e {runs.folder}/up ]; do sleep 0.01; done; exit 5"
    if kind == "program":
        script = (
            f"if [ $LOCAL_RANK = 0 ]; then {wait_then_fail}; fi; trap '' TERM; touch $FOLDER/up; sleep 1000"
        )
        result = runs.run("sh", "-c", script, size=2, grace=0.3)
    else:
        result = runs.run(functions.ignore_or_fail, str(runs.folder), size=2, grace=0.3)
    assert {rank: failure.exitcode for rank, failure in result.failures.items()} == {0: 5}
    assert not runs.left()


@both_kinds
def test_a_hanging_worker_is_ended_by_the_watchdog_which_is_said_in_the_report(runs: Runs, kind: str) -> None:
    env = {"TORCHELASTIC_ENABLE_FILE_TIMER": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    if kind == "program":
        code = "from tests.integration.elastic import functions; functions.hang_in_timer()"
        result = runs.run(sys.executable, "-c", code, env=env)
    else:
        result = runs.run(functions.hang_in_timer, env=env)
    assert [failure.exitcode for failure in result.failures.values()] == [-signal.SIGKILL]
    report = str(ChildFailedError("trainer", result.failures))
    assert "watchdog" in report
    assert "step 7" in report
    assert "hang_in_timer" in runs.log("stacks.txt").read_text()


@both_kinds
def test_a_worker_stuck_in_the_kernel_ends_the_run_as_failed_and_says_where(runs: Runs, kind: str) -> None:
    def asleep(pid: int) -> ProcessStat | None:
        stat = read_stat(pid)
        return None if stat is None else replace(stat, state="D")

    agent_made = LocalElasticAgent.__init__
    entrypoint, args = ("sleep", ("1000",)) if kind == "program" else (functions.sleep, (str(runs.folder),))

    def with_fake_reader(self: LocalElasticAgent, *given: Any, **options: Any) -> None:
        agent_made(self, *given, **options)
        self._state_watch = StateWatch(0.2, asleep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalElasticAgent, "__init__", with_fake_reader)
        result = runs.run(entrypoint, *args)
    assert (result.state, dict(result.failures)) == (WorkerState.FAILED, {})
    assert "state D" in result.reason
    assert "rank 0 (pid " in result.reason
    assert not runs.left()
