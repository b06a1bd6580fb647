"""Groups of workers as a user without an agent has them, and as an owner with a waiter does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.multiprocessing import (
    DefaultLogsSpecs,
    GroupOwner,
    PContext,
    RoundLogsSpecs,
    RunProcsResult,
    SignalException,
    Std,
    SubprocessContext,
    create_context,
    start_processes,
)
from agentd.elastic.numa import AffinityMode, NumaOptions
from agentd.procs import crew as crew_module
from agentd.procs.crew import Crew, UnkillableWorkers
from agentd.procs.exits import ExitInfo, ExitWatch
from agentd.procs.identity import ProcessIdentity
from agentd.procs.procfs import is_finished, processes
from agentd.procs.spawn import Child, SpawnError, spawn
from agentd.procs.waiter import Waiter
from tests.integration.elastic import functions
from tests.support.waiting import wait_until

PATIENCE_S = 60.0


def _envs(count: int, **env: str) -> dict[int, dict[str, str]]:
    return {rank: {"AGENTD_ROUND": "1", **env} for rank in range(count)}


@contextmanager
def _shells(folder: Path, *scripts: str, **options: Any) -> Iterator[PContext]:
    """One shell a script, started."""
    args = {rank: ("-c", script) for rank, script in enumerate(scripts)}
    specs = options.pop("logs_specs", None) or RoundLogsSpecs(str(folder / "logs"))
    context = start_processes("trainer", "sh", args, _envs(len(scripts), F=str(folder)), specs, **options)
    try:
        yield context
    finally:
        context.close(signal.SIGKILL, 0)


def _living_in(sessions: set[int]) -> list[int]:
    return [stat.pid for stat in processes() if stat.session in sessions and not is_finished(stat)]


def test_programs_have_values_of_none(tmp_path: Path) -> None:
    with _shells(tmp_path, "echo $0 $F", "exit 0") as context:
        assert isinstance(context, SubprocessContext)
        result = context.wait(PATIENCE_S)
    assert result is not None
    assert (result.return_values, result.failures, result.is_failed()) == ({0: None, 1: None}, {}, False)
    assert Path(result.stdouts[0]).read_text() == f"sh {tmp_path}\n"


@pytest.mark.parametrize(
    ("args", "envs"), [({1: ()}, {0: {}}), ({0: ()}, {1: {}}), ({0: ()}, {0: {}, 1: {}})]
)
def test_ranks_that_do_not_begin_at_0_or_do_not_fit_are_refused(
    tmp_path: Path, args: dict[int, tuple[Any, ...]], envs: dict[int, dict[str, str]]
) -> None:
    with pytest.raises(RuntimeError, match=r"must have the local ranks \[0\], has"):
        start_processes("trainer", "sh", args, envs, RoundLogsSpecs(str(tmp_path)))


def test_a_missing_program_raises_from_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpawnError, match="no-such-program"):
        start_processes("trainer", "no-such-program", {0: ()}, _envs(1), RoundLogsSpecs(str(tmp_path)))


def test_all_that_failed_by_themselves_are_told_and_none_that_was_stopped(tmp_path: Path) -> None:
    both = 'touch "$F/ready$$"; while [ "$(ls "$F" | grep -c ready)" != 3 ]; do sleep 0.01; done; exit '
    with _shells(tmp_path, both + "3", both + "4", both + "0; sleep 1000", "exec sleep 1000") as context:
        # Both fail before anybody looks.
        pids = context.pids()
        for rank in (0, 1):
            wait_until(lambda pid=pids[rank]: " Z " in Path(f"/proc/{pid}/stat").read_text(), 60)  # type: ignore[misc]
        result = context.wait(PATIENCE_S)
        assert result is not None
        assert {rank: failure.exitcode for rank, failure in result.failures.items()} == {0: 3, 1: 4}
        assert not _living_in(set(pids.values()))


def test_a_wait_of_0_looks_once(tmp_path: Path) -> None:
    with _shells(tmp_path, 'while [ ! -e "$F/go" ]; do sleep 0.01; done') as context:
        assert context.wait(0) is None
        assert context.wait(0.05) is None
        (tmp_path / "go").touch()
        assert context.wait() is not None


def test_teed_output_is_on_the_console_with_prefixes_when_it_is_closed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    specs = DefaultLogsSpecs(str(tmp_path), tee={0: Std.OUT, 1: Std.ERR})
    script = "echo out; echo err >&2"
    with _shells(
        tmp_path, script, script, logs_specs=specs, log_line_prefixes={0: "<zero> "},
        duplicate_stdout_filters=["ou"], duplicate_stderr_filters=["rr"],
    ) as context:  # fmt: skip
        assert context.wait(PATIENCE_S) is not None
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["<zero> out", "out"]
    assert sorted(err.splitlines()) == ["[trainer1]:err", "err"]
    assert [path.read_text() for path in tmp_path.glob("*/attempt_0/filtered_stdout.log")] != []


def test_functions_are_teed_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = start_processes(
        "trainer",
        functions.product,
        {0: (2, 3)},
        _envs(1, NAME="the one"),
        DefaultLogsSpecs(str(tmp_path), tee=Std.ALL),
    )
    try:
        assert context.wait(PATIENCE_S) is not None
    finally:
        context.close()
    assert capfd.readouterr() == ("[trainer0]:out the one\n", "[trainer0]:err the one\n")


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_function_that_is_not_redirected_writes_where_this_process_writes_now(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    context = start_processes(
        "trainer",
        functions.product,
        {0: (2, 3)},
        _envs(1, NAME="the one", PYTHONUNBUFFERED="1"),
        DefaultLogsSpecs(str(tmp_path)),
        start_method=method,
    )
    try:
        assert context.wait(PATIENCE_S) is not None
    finally:
        context.close()
    assert capfd.readouterr() == ("out the one\n", "err the one\n")


# --- signals


def test_a_signal_ends_a_wait_and_leaves_workers_and_handlers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)

    def hang_up_when_it_is_heard() -> None:
        wait_until(lambda: signal.getsignal(signal.SIGHUP) is not before)
        os.kill(os.getpid(), signal.SIGHUP)

    with _shells(tmp_path, "exec sleep 1000") as context:
        signals = threading.Thread(target=hang_up_when_it_is_heard)
        signals.start()
        try:
            with pytest.raises(SignalException, match=f"Process {os.getpid()} got signal: 1") as raised:
                context.wait(PATIENCE_S)
        finally:
            signals.join()
        assert raised.value.sigval is signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) is before
        assert context.poll() is None, "they run on"
        assert _living_in(set(context.pids().values()))
        context.close()
        assert not _living_in(set(context.pids().values()))


def test_a_signal_ends_a_wait_for_those_that_take_long_to_stop(tmp_path: Path) -> None:
    stubborn = 'trap "touch $F/stopping" TERM; touch $F/up; while :; do sleep 0.05; done'
    with _shells(tmp_path, 'while [ ! -e "$F/up" ]; do sleep 0.01; done; exit 3', stubborn) as context:
        signals = threading.Thread(target=_interrupt_when, args=(tmp_path / "stopping",))
        signals.start()
        started = time.monotonic()
        try:
            with pytest.raises(SignalException):
                context.wait(PATIENCE_S)
        finally:
            signals.join()
        assert time.monotonic() - started < 20, "not the whole grace"
        context.close(timeout=0)
        assert {rank: failure.exitcode for rank, failure in context.failures.items()} == {0: 3}


def _interrupt_when(file: Path) -> None:
    wait_until(file.exists, 60)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_close_that_an_interrupt_cut_short_can_be_repeated(tmp_path: Path) -> None:
    stubborn = 'trap "touch $F/stopping" TERM; touch $F/up; while :; do sleep 0.05; done'
    with _shells(tmp_path, stubborn) as context:
        wait_until((tmp_path / "up").exists, 60)
        signals = threading.Thread(target=_interrupt_when, args=(tmp_path / "stopping",))
        signals.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                context.close(timeout=60)
        finally:
            signals.join()
        assert _living_in(set(context.pids().values()))
        context.close(timeout=0)
        assert not _living_in(set(context.pids().values()))


def test_the_signals_to_take_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGUSR1")
    got: list[int] = []
    former = signal.signal(signal.SIGHUP, lambda signum, _frame: got.append(signum))
    try:
        with _shells(tmp_path, 'kill -HUP $PPID; while [ ! -e "$F/go" ]; do sleep 0.01; done') as context:
            wait_until(lambda: got, 60)
            (tmp_path / "go").touch()
            assert context.wait(PATIENCE_S) is not None
    finally:
        signal.signal(signal.SIGHUP, former)


# --- for an owner with a waiter


def test_an_owner_learns_of_ends_inside_its_waits_and_may_explain_them(tmp_path: Path) -> None:
    ends: list[tuple[int, int, bool]] = []
    asked: list[int] = []

    def explain(pid: int) -> str:
        asked.append(pid)
        return "the watchdog killed it"

    with Waiter() as waiter:
        context = create_context(
            "trainer",
            functions.leave,
            {0: ("signal", signal.SIGKILL)},
            _envs(1),
            RoundLogsSpecs(str(tmp_path)),
            start_method="fork",
            owner=GroupOwner(
                waiter=waiter,
                on_exit=lambda rank, info, torn_down: ends.append((rank, info.returncode, torn_down)),
                explain=explain,
            ),
        )
        try:
            context.start()
            assert waiter.wait_until(context.failed, time.monotonic() + PATIENCE_S)
            assert ends == [(0, -signal.SIGKILL, False)]
            result = context.poll()
            assert result is not None
            assert result.failures[0].message_text() == "the watchdog killed it"
            assert asked == [context.pids()[0]]
        finally:
            context.close()
        waiter.wait(time.monotonic())  # nothing of the context is left in it


def test_an_error_file_is_better_than_an_explanation(tmp_path: Path) -> None:
    with Waiter() as waiter:
        context = create_context(
            "trainer",
            functions.leave,
            {0: ("raise", "x")},
            _envs(1),
            RoundLogsSpecs(str(tmp_path)),
            owner=GroupOwner(waiter=waiter, explain=lambda _pid: "not asked"),
        )
        try:
            context.start()
            result = context.wait(PATIENCE_S)
            assert result is not None
            assert result.failures[0].message_text() == "ArithmeticError: asked to raise x"
        finally:
            context.close()


def test_programs_and_functions_share_a_waiter(tmp_path: Path) -> None:
    with Waiter() as waiter, _in(waiter, "sh", ("-c", "exit 3"), tmp_path / "a") as shells:
        with _in(waiter, functions.product, (6, 7), tmp_path / "b") as products:
            done = lambda: shells.failed() and products.poll() is not None  # noqa: E731
            assert waiter.wait_until(done, time.monotonic() + PATIENCE_S)
            result = products.poll()
            assert result is not None
            assert result.return_values == {0: 42}
            assert shells.failures[0].exitcode == 3


@contextmanager
def _in(waiter: Waiter, entrypoint: Any, args: tuple[Any, ...], folder: Path) -> Iterator[PContext]:
    context = create_context(
        "trainer",
        entrypoint,
        {0: args},
        _envs(1, NAME="it"),
        RoundLogsSpecs(str(folder)),
        owner=GroupOwner(waiter=waiter),
    )
    try:
        context.start()
        yield context
    finally:
        context.close(signal.SIGKILL, 0)


def test_functions_do_not_own_what_descends_from_their_agent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="owns_descendants is for programs"):
        create_context(
            "t",
            functions.product,
            {0: ()},
            _envs(1),
            RoundLogsSpecs(str(tmp_path)),
            owner=GroupOwner(owns_descendants=True),
        )


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_functions_are_bound_to_cpus_as_programs_are(tmp_path: Path, method: str) -> None:
    options = NumaOptions(AffinityMode.EXCLUSIVE, should_fall_back_if_binding_fails=True)
    envs = {rank: {"AGENTD_ROUND": "1", "LOCAL_WORLD_SIZE": "2"} for rank in range(2)}
    show = dict.fromkeys(range(2), ("-c", "import os; print(*sorted(os.sched_getaffinity(0)))"))
    found: list[RunProcsResult] = []
    for entrypoint, args in ((sys.executable, show), (functions.surroundings, {0: (), 1: ()})):
        specs = RoundLogsSpecs(str(tmp_path / str(len(found))))
        context = start_processes("t", entrypoint, args, envs, specs, None, method, options)
        try:
            result = context.wait(PATIENCE_S)
            assert result is not None
            found.append(result)
        finally:
            context.close()
    programs = [Path(found[0].stdouts[rank]).read_text().split() for rank in range(2)]
    cpus = [sorted(found[1].return_values[rank]["cpus"]) for rank in range(2)]
    assert [[str(cpu) for cpu in some] for some in cpus] == programs


def test_a_daemon_that_left_its_workers_session_ends_with_the_group(tmp_path: Path) -> None:
    daemon = "setsid sh -c 'echo $$ >$F/pid; exec sleep 1000' & while [ ! -s $F/pid ]; do sleep 0.01; done"
    with _shells(tmp_path, daemon) as context:
        result = context.wait(PATIENCE_S)
    assert result is not None
    assert result.return_values == {0: None}
    pid = int((tmp_path / "pid").read_text())
    assert pid not in {stat.pid for stat in processes() if not is_finished(stat)}


# --- the crew under it all


class Unreachable:
    """A leader that no signal reaches and no session shows, until the test lets go of it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.identity: ProcessIdentity = child.identity
        self.pid = child.pid
        self.started_at = child.started_at

    def signal_group(self, signum: int) -> None: ...

    def watch(self, waiter: Waiter, on_exit: Any) -> ExitWatch:
        return self._child.watch(waiter, on_exit)

    def reap(self) -> None:
        self._child.reap()


def test_a_leader_that_cannot_be_found_nor_killed_is_stuck_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crew_module, "KILL_BOUND_S", 0.2)
    ended: list[tuple[int, ExitInfo]] = []
    # In this process' session, so that no sweep finds it.
    child = spawn(["sleep", "1000"], env=os.environ, new_session=False)
    try:
        with Waiter() as waiter:
            crew = Crew(waiter, lambda index, info: ended.append((index, info)))
            crew.adopt(0, Unreachable(child))
            crew.complete()
            crew.stop(signal.SIGTERM, time.monotonic())
            assert waiter.wait_until(lambda: crew.settled, time.monotonic() + 20)
            assert not crew.gone
            assert [stuck.pid for stuck in crew.stuck] == [child.pid]
            assert str(child.pid) in str(UnkillableWorkers(crew.stuck))
            crew.close()
    finally:
        child.popen.kill()
        child.popen.wait()
    assert ended == []
