"""Functions in worker processes: what they get, what they return, and how they can fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.multiprocessing import (
    ArgumentNotPicklable,
    GroupOwner,
    MultiprocessContext,
    PContext,
    ProcessFailure,
    RoundLogsSpecs,
    RunProcsResult,
    create_context,
    start_processes,
)
from agentd.procs import kernel_view
from agentd.procs.procfs import is_finished, processes, read_environ
from agentd.procs.waiter import Waiter
from tests.integration.elastic import functions
from tests.support.waiting import wait_until

METHODS = ("spawn", "fork", "forkserver")
EMPTY = ("spawn", "forkserver")
PATIENCE_S = 60.0
all_methods = pytest.mark.parametrize("method", METHODS)


class Group:
    """Makes groups of function workers and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[PContext] = []

    def start(self, function: Callable[..., Any], *args: Any, **options: Any) -> PContext:
        """One worker with these arguments."""
        return self.start_all(function, [args], **options)

    def start_all(
        self, function: Callable[..., Any], args: list[tuple[Any, ...]], method: str = "spawn", **env: str
    ) -> PContext:
        envs = {
            rank: {"AGENTD_ROUND": "1", "NAME": f"worker {rank}", "PYTHONUNBUFFERED": "1", **env}
            for rank in range(len(args))
        }
        context = start_processes(
            "trainer",
            function,
            dict(enumerate(args)),
            envs,
            RoundLogsSpecs(str(self.folder)),
            start_method=method,
        )
        self.made.append(context)
        return context

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> RunProcsResult:
        return self.end(self.start(function, *args, **options))

    def end(self, context: PContext) -> RunProcsResult:
        result = context.wait(PATIENCE_S)
        assert result is not None
        context.close()
        return result

    def failure(self, function: Callable[..., Any], *args: Any, **options: Any) -> ProcessFailure:
        result = self.run(function, *args, **options)
        assert result.return_values == {}
        return result.failures[0]

    def log(self, name: str, rank: int = 0) -> bytes:
        return (self.folder / "round_1" / str(rank) / name).read_bytes()

    def left(self) -> list[int]:
        marker = str(self.folder).encode()
        return [
            stat.pid for stat in processes() if not is_finished(stat) and marker in read_environ(stat.pid)
        ]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path)
    yield group
    for context in group.made:
        context.close(signal.SIGKILL, 0)
    # Queues and what else they hold ends before the helpers of multiprocessing do.
    group.made.clear()


# --- what they get, and what they return


@all_methods
def test_values_come_back_by_local_rank(group: Group, method: str) -> None:
    context = group.start_all(functions.product, [(2, 3), (4, 5), (6, 7)], method)
    assert isinstance(context, MultiprocessContext)
    result = group.end(context)
    assert (result.return_values, result.failures) == ({0: 6, 1: 20, 2: 42}, {})
    assert [group.log("stdout.log", rank) for rank in (0, 2)] == [b"out worker 0\n", b"out worker 2\n"]
    assert group.log("stderr.log", 1) == b"err worker 1\n"


@all_methods
def test_a_worker_is_what_a_program_would_be(group: Group, method: str) -> None:
    former = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        seen = group.run(functions.surroundings, method=method).return_values[0]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR2, former)
    pid, *ids = seen["ids"]
    assert ids == [pid, pid], "it leads a session and a group of its own"
    assert seen["stdin"] == "/dev/null"
    assert seen["fds"][1] == str(group.folder / "round_1" / "0" / "stdout.log")
    assert (seen["blocked"], seen["sigterm"], seen["sigint"], seen["sigusr2"]) == (0, True, True, True)
    assert (seen["wakeup"], seen["threads"]) == (-1, 1)


@all_methods
def test_a_worker_has_exactly_the_environment_that_it_is_given(tmp_path: Path, method: str) -> None:
    with Waiter() as waiter:
        context = create_context(
            "trainer",
            functions.surroundings,
            {0: ()},
            {0: {"AGENTD_ROUND": "1", "MINE": "1", "ODD": "\udcff\nmore=\u20ac"}},
            RoundLogsSpecs(str(tmp_path / "logs")),
            start_method=method,
            owner=GroupOwner(
                waiter=waiter, base_env={"PATH": os.environ["PATH"], "MINE": "0"}, cwd=str(tmp_path)
            ),
        )
        try:
            context.start()
            result = context.wait(PATIENCE_S)
            assert result is not None
            seen = result.return_values[0]
        finally:
            context.close()
    expected = {"AGENTD_ROUND", "MINE", "ODD", "PATH", "TORCHELASTIC_ERROR_FILE"}
    assert set(seen["environ"]) - {"LC_CTYPE"} == expected
    assert seen["environ"]["ODD"] == "\udcff\nmore=\u20ac", "also what is no UTF-8, and more than a line"
    assert (seen["environ"]["MINE"], seen["cwd"]) == ("1", str(tmp_path))


def test_a_forked_worker_keeps_nothing_of_the_agents_waiter_nor_of_other_workers(group: Group) -> None:
    def sockets_and_polls(seen: dict[str, Any]) -> list[str]:
        return [target for target in seen["fds"].values() if "socket" in target or "anon_inode" in target]

    before = sockets_and_polls(functions.surroundings())
    result = group.end(group.start_all(functions.surroundings, [(), ()], "fork"))
    for rank in (0, 1):
        gained = [target for target in sockets_and_polls(result.return_values[rank]) if target not in before]
        assert len(gained) == 1, "the channel of its own value alone"


@all_methods
def test_a_hundred_megabytes_go_in_and_come_out(group: Group, method: str) -> None:
    data = b"x" * (100 * functions.MEGABYTE)
    assert group.run(functions.size_of, data, method=method).return_values == {0: len(data)}
    del data
    value = group.run(functions.big, 100, method=method).return_values[0]
    assert len(value) == 100 * functions.MEGABYTE


def test_arguments_that_nobody_reads_block_nobody(group: Group) -> None:
    """A worker that dies before it reads its arguments leaves a pipe full, where they go through one."""
    started = time.monotonic()
    context = group.start(functions.size_of, b"x" * (50 * functions.MEGABYTE))
    context.close(signal.SIGKILL, 0)
    assert time.monotonic() - started < 20
    assert not group.left()


@all_methods
def test_queues_can_be_arguments(group: Group, method: str) -> None:
    queue = multiprocessing.get_context(method).Queue()
    try:
        context = group.start(functions.put_into, queue, "hello", method=method)
        assert queue.get(timeout=PATIENCE_S) == "hello"
        assert group.end(context).return_values == {0: "put"}
    finally:
        queue.close()
        queue.join_thread()


def test_an_unbuffered_worker_loses_no_output_when_it_is_killed(group: Group) -> None:
    assert group.failure(functions.unbuffered_then_killed).exitcode == -signal.SIGKILL
    assert group.log("stdout.log") == b"no newline, no flush"


# --- what cannot be sent


@pytest.mark.parametrize("method", EMPTY)
def test_an_argument_that_cannot_be_pickled_is_named_and_nothing_is_left(group: Group, method: str) -> None:
    with pytest.raises(ArgumentNotPicklable) as raised:
        group.start_all(functions.product, [(1, 2), (3, lambda: None)], method)
    assert (raised.value.local_rank, raised.value.what) == (1, "argument 1")
    text = str(raised.value)
    assert "local rank 1: argument 1, a function, cannot be sent" in text
    assert "at module level" in text
    assert "start_method='fork'" in text
    assert not group.left()


@pytest.mark.parametrize("method", EMPTY)
def test_a_function_that_cannot_be_pickled_is_named(group: Group, method: str) -> None:
    with pytest.raises(ArgumentNotPicklable, match="local rank 0: the function, a function, cannot be sent"):
        group.start(lambda: None, method=method)


def test_a_forked_worker_needs_no_pickling(group: Group) -> None:
    offset = 40
    assert group.run(lambda value: value() + offset, lambda: 2, method="fork").return_values == {0: 42}


@pytest.mark.parametrize("method", EMPTY)
def test_a_function_that_the_worker_lacks_is_named(
    group: Group, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_here() -> None: ...

    made_here.__module__, made_here.__qualname__ = functions.__name__, "made_here"
    monkeypatch.setattr(functions, "made_here", made_here, raising=False)
    failure = group.failure(made_here, method=method)
    assert failure.exitcode == 1
    text = failure.message_text()
    assert f"local rank 0 cannot load the function of {functions.__name__}.made_here" in text
    assert "FunctionNotLoadable" in text
    assert "module that it can import" in text
    assert b"FunctionNotLoadable" in group.log("stderr.log")


def test_an_argument_that_the_worker_cannot_load_is_told(group: Group) -> None:
    text = group.failure(functions.size_of, functions.Picky()).message_text()
    assert "cannot load the arguments of" in text
    assert "LookupError: not in this process" in text


@all_methods
def test_a_value_that_cannot_be_pickled_fails_its_worker(group: Group, method: str) -> None:
    failure = group.failure(functions.lambda_returner, method=method)
    assert failure.exitcode == 1
    text = failure.message_text()
    assert f"local rank 0: {functions.__name__}.lambda_returner returned a function" in text
    assert "Return plain data" in text


@all_methods
def test_a_value_whose_class_is_missing_here_fails_its_worker(group: Group, method: str) -> None:
    failure = group.failure(functions.strange_value, method=method)
    assert (failure.local_rank, failure.exitcode) == (0, 0)
    assert "returned a value that cannot be loaded here: AttributeError" in failure.message_text()
    assert "OnlyHere" in failure.message_text()


# --- how they end


@all_methods
def test_an_end_with_0_and_no_value_is_a_failure_that_says_so(group: Group, method: str) -> None:
    failure = group.failure(functions.leave, "os._exit", 0, method=method)
    assert failure.exitcode == 0
    assert "ended with exit code 0 before its function returned a value" in failure.message_text()


@all_methods
@pytest.mark.parametrize("status", [0, None])
def test_sys_exit_0_is_a_success_without_value(group: Group, method: str, status: int | None) -> None:
    result = group.run(functions.leave, "sys.exit", status, method=method)
    assert (result.return_values, result.failures) == ({0: None}, {})


@all_methods
@pytest.mark.parametrize(
    ("how", "status", "exitcode"),
    [
        ("sys.exit", 3, 3),
        ("os._exit", 4, 4),
        ("raise", "x", 1),
        ("interrupt", None, -signal.SIGINT),
        ("signal", signal.SIGKILL, -signal.SIGKILL),
        ("fault", None, -signal.SIGSEGV),
    ],
)
def test_an_end_is_reported_as_it_was(
    group: Group, method: str, how: str, status: Any, exitcode: int
) -> None:
    failure = group.failure(functions.leave, how, status, method=method)
    assert failure.exitcode == exitcode
    if how == "raise":
        assert failure.message_text() == "ArithmeticError: asked to raise x"
        assert b"ArithmeticError" in group.log("stderr.log")
    elif exitcode < 0:
        assert failure.signal_name() in failure.message_text()
    if how == "fault":
        assert b"Segmentation fault" in group.log("stderr.log"), "with the stacks"


@all_methods
def test_the_others_end_with_the_first_and_are_no_failures(group: Group, method: str) -> None:
    args = [(rank, str(group.folder)) for rank in range(3)]
    started = time.monotonic()
    result = group.end(group.start_all(functions.one_fails, args, method))
    assert set(result.failures) == {0}
    assert result.failures[0].message_text() == "RuntimeError: the first"
    assert time.monotonic() - started < 25, "by SIGTERM, before the grace was over"
    assert not group.left()


@all_methods
def test_a_worker_that_ignores_sigterm_is_killed_after_its_grace(group: Group, method: str) -> None:
    context = group.start(functions.ignore_sigterm, str(group.folder), method=method)
    wait_until((group.folder / "up").exists, 60)
    context.close(timeout=0.2)
    assert not group.left()
    assert not Path(f"/proc/{context.pids()[0]}").exists()


@all_methods
def test_a_stop_reaches_a_worker_that_has_not_begun(group: Group, method: str) -> None:
    context = group.start(functions.sleep, str(group.folder), method=method)
    started = time.monotonic()
    context.close(timeout=300)
    assert time.monotonic() - started < 60
    assert not Path(f"/proc/{context.pids()[0]}").exists()


def _living_in(session: int) -> list[int]:
    return [stat.pid for stat in processes() if stat.session == session and not is_finished(stat)]


@all_methods
def test_grandchildren_die_with_a_stopped_worker(group: Group, method: str) -> None:
    context = group.start(functions.sleep_with_grandchild, str(group.folder), method=method)
    wait_until((group.folder / "up").exists, 60)
    wait_until(lambda: (group.folder / "forked").exists() and (group.folder / "forked").read_text(), 60)
    session = context.pids()[0]
    assert len(_living_in(session)) == 3
    context.close(timeout=5)
    assert not _living_in(session)


@all_methods
def test_grandchildren_die_with_a_worker_that_ends(group: Group, method: str) -> None:
    context = group.start(functions.leave_grandchild, method=method)
    grandchild = group.end(context).return_values[0]
    assert grandchild not in _living_in(context.pids()[0])


# --- what they write


def test_a_worker_may_close_its_stdout(group: Group) -> None:
    assert group.run(functions.close_stdout).return_values == {0: "done"}
    assert group.log("stdout.log") == b"before\n"


def test_garbage_is_written_as_it_is(group: Group) -> None:
    group.run(functions.print_garbage)
    assert group.log("stdout.log") == b"\xff\xfe not utf-8 \x80\n"
    assert group.log("stderr.log") == b"\xc3\x28\n"


def test_a_hundred_megabytes_without_newline_are_written(group: Group) -> None:
    group.run(functions.print_without_newline, 100)
    assert (group.folder / "round_1/0/stdout.log").stat().st_size == 100 * functions.MEGABYTE


# --- beside other users of multiprocessing, in threads, and when the agent dies


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_somebody_who_reaps_all_of_multiprocessings_children_changes_nothing(
    group: Group, method: str
) -> None:
    context = group.start(functions.leave, "os._exit", 5, method=method)
    pid = context.pids()[0]
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", 60)
    assert multiprocessing.active_children() == []
    assert Path(f"/proc/{pid}").exists(), "it keeps its pid until its session is swept"
    assert group.end(context).failures[0].exitcode == 5


@all_methods
def test_functions_run_from_any_thread(group: Group, method: str) -> None:
    results: list[RunProcsResult] = []
    thread = threading.Thread(
        target=lambda: results.append(group.run(functions.product, 6, 7, method=method))
    )
    thread.start()
    thread.join(PATIENCE_S)
    assert results[0].return_values == {0: 42}


def test_a_group_is_started_once(group: Group) -> None:
    context = group.start(functions.product, 1, 2)
    with pytest.raises(ValueError, match="started already"):
        context.start()


def test_an_unknown_start_method_is_refused(group: Group) -> None:
    with pytest.raises(ValueError, match="spawn, fork, forkserver"):
        group.start(functions.product, 1, 2, method="thread")


def _host(folder: Path, method: str, *more: str, **env: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[3]
    script = str(root / "tests/integration/elastic/functions_host.py")
    return subprocess.Popen(
        [sys.executable, script, str(folder), method, *more],
        env={**os.environ, "PYTHONPATH": str(root), "FOLDER": str(folder), **env},
    )


@pytest.mark.parametrize(
    "method",
    [
        "spawn",
        "fork",
        pytest.param(
            "forkserver",
            marks=pytest.mark.allow_leak("files", reason="multiprocessing's socket of a killed process"),
        ),
    ],
)
def test_workers_and_what_they_started_die_when_their_agents_process_is_killed(
    group: Group, method: str
) -> None:
    host = _host(group.folder, method)
    try:
        wait_until(lambda: (group.folder / "up0").exists() and (group.folder / "up1").exists(), 60)
        host.kill()
        host.wait()
        wait_until(lambda: not group.left(), 60)
    finally:
        host.kill()
        host.wait()


def _written_pids(file: Path) -> list[int]:
    text = wait_until(lambda: file.exists() and file.read_text(), 60)
    return [int(pid) for pid in str(text).split()]


@pytest.mark.allow_leak("files", reason="multiprocessing's socket of a killed process")
def test_a_process_that_the_agent_forked_keeps_no_worker_alive(group: Group) -> None:
    host = _host(group.folder, "forkserver", "bystander")
    bystander = 0
    try:
        wait_until(lambda: (group.folder / "up0").exists() and (group.folder / "up1").exists(), 60)
        bystander, *_ = _written_pids(group.folder / "bystander")
        workers = _written_pids(group.folder / "pids")
        host.kill()
        host.wait()
        wait_until(lambda: not any(_living_in(pid) for pid in workers), 60)
        assert bystander in group.left()
    finally:
        host.kill()
        host.wait()
        if bystander:
            os.kill(bystander, signal.SIGKILL)


@all_methods
def test_a_signal_during_a_wait_is_raised_there(group: Group, method: str) -> None:
    host = _host(group.folder, method)
    try:
        wait_until(lambda: (group.folder / "up0").exists() and (group.folder / "up1").exists(), 60)
        wait_until((group.folder / "pids").exists)
        wait_until(lambda: kernel_view.catches(host.pid, signal.SIGTERM), what="it waits")
        host.send_signal(signal.SIGTERM)
        assert host.wait(timeout=60) == 100 + signal.SIGTERM
        wait_until(lambda: not group.left(), 60)
    finally:
        host.kill()
        host.wait()


def test_a_main_module_that_fails_in_the_worker_is_reported(group: Group) -> None:
    host = _host(group.folder, "spawn", MAIN_MODULE_FAILS="1")
    try:
        assert host.wait(timeout=60) == 0
    finally:
        host.kill()
        host.wait()
    # The first one that failed has the other one ended, before or after it failed as well.
    reports = [path.parent for path in group.folder.glob("round_1/*/error.json")]
    assert reports
    for folder in reports:
        assert "LookupError: the main module cannot be imported" in (folder / "error.json").read_text()
        assert "LookupError" in (folder / "stderr.log").read_text(), "in the worker's own log"


def test_handlers_are_the_former_ones_after_a_wait(group: Group) -> None:
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in handled]
    group.run(functions.product, 1, 2)
    assert [signal.getsignal(number) for number in handled] == before
