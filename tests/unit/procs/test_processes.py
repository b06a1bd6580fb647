"""Identity, exits, spawning and sweeping, each against one real process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.procs import exits, procfs
from agentd.procs.exits import ExitInfo, ExitWatch, peek_exit
from agentd.procs.identity import ProcessIdentity, boot_id, identify, is_alive, send_signal
from agentd.procs.spawn import Child, SpawnError, spawn
from agentd.procs.tree import Marks, find, sweep
from agentd.procs.waiter import Waiter

SLEEP = ("sleep", "1000")


@contextmanager
def child(*argv: str, env: dict[str, str] | None = None) -> Iterator[Child]:
    started = spawn(argv, env={**os.environ, **(env or {})})
    try:
        yield started
    finally:
        if started.popen.returncode is None:
            started.signal_group(signal.SIGKILL)
            started.popen.wait()
        started.reap()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 60 s"
        time.sleep(0.005)


def test_a_process_is_itself_and_no_other_with_its_pid() -> None:
    with child(*SLEEP) as one:
        stranger = replace(one.identity, start_time=one.identity.start_time - 1)
        assert is_alive(one.identity)
        assert not is_alive(stranger)
        assert not send_signal(stranger, signal.SIGKILL)
        assert is_alive(one.identity)
        assert send_signal(one.identity, signal.SIGKILL)
        _wait_for(lambda: not is_alive(one.identity))
        assert identify(one.pid) == one.identity, "unreaped, it keeps its pid"
        one.popen.wait()
        assert identify(one.pid) is None
        assert not send_signal(one.identity, signal.SIGKILL)


def test_identity_works_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "no")

    with child(*SLEEP) as one:
        monkeypatch.setattr(os, "pidfd_open", refuse)
        assert not send_signal(replace(one.identity, start_time=1), signal.SIGKILL)
        assert send_signal(one.identity, signal.SIGTERM)
        _wait_for(lambda: not is_alive(one.identity))


def test_a_boot_has_one_name() -> None:
    assert boot_id() == boot_id() != ""


def test_a_name_with_brackets_and_spaces_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a) (b c"
    program.symlink_to("/bin/sleep")
    with child(str(program), "1000") as one:
        stat = procfs.read_stat(one.pid)
        assert stat is not None
        assert (stat.parent, stat.session, stat.group) == (os.getpid(), one.pid, one.pid)


@pytest.mark.parametrize("with_pidfd", [True, False])
@pytest.mark.parametrize(
    ("script", "info", "summary", "returncode"),
    [
        ("exit 3", ExitInfo(3, None), "exit code 3", 3),
        ("exit 0", ExitInfo(0, None), "exit code 0", 0),
        ("kill -SEGV $$", ExitInfo(None, signal.SIGSEGV), "SIGSEGV", -11),
    ],
)
def test_an_exit_is_told_once_and_stays_unreaped(
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    info: ExitInfo,
    summary: str,
    returncode: int,
    with_pidfd: bool,
) -> None:
    if not with_pidfd:
        monkeypatch.setattr(exits, "_open_pidfd", lambda _pid: None)
    told: list[ExitInfo] = []
    with child("sh", "-c", f"ulimit -c 0; {script}") as one, Waiter() as waiter:
        ExitWatch(waiter, one.pid, told.append)
        assert waiter.wait_until(lambda: bool(told), time.monotonic() + 60)
        waiter.wait(time.monotonic() + 0.05)
        assert told == [info]
        assert (told[0].summary, told[0].returncode) == (summary, returncode)
        assert peek_exit(one.pid) == info, "still to be reaped"


def test_an_exit_that_somebody_else_reaped_is_unknown() -> None:
    with child("true") as one:
        one.popen.wait()
        assert peek_exit(one.pid) == ExitInfo(None, None)


@pytest.mark.parametrize(
    ("argv", "cwd", "path", "problem"),
    [
        (["no-such-program"], None, "no-such-program", "on the PATH"),
        (["/no/such"], None, "/no/such", "No such file"),
        (["/etc/passwd"], None, "/etc/passwd", "is it an executable file"),
        (["true"], "/no/such", "/no/such", "as its directory"),
        (["true", "x" * (4 << 20)], None, "true", "Argument list too long"),
        (["true", "a\0b"], None, "true", "null byte"),
    ],
)
def test_what_cannot_be_started_is_named(argv: list[str], cwd: str | None, path: str, problem: str) -> None:
    with pytest.raises(SpawnError, match=problem) as raised:
        spawn(argv, env=os.environ, cwd=cwd)
    assert raised.value.path.endswith(path)


def test_scripts_without_a_usable_first_line_are_explained(tmp_path: Path) -> None:
    for text, problem in (("#!/no/such\n", "interpreter"), ("echo\n", "a script needs a first line")):
        script = tmp_path / "script"
        script.write_text(text)
        script.chmod(0o755)
        with pytest.raises(SpawnError, match=problem):
            spawn([str(script)], env=os.environ)


def test_a_program_is_looked_up_on_the_path_of_its_own_environment(tmp_path: Path) -> None:
    (tmp_path / "only-here").symlink_to("/bin/true")
    with child("only-here", env={"PATH": str(tmp_path)}) as one:
        assert one.popen.wait() == 0


def test_a_sweep_ends_sessions_and_token_bearers_and_no_stranger() -> None:
    token = "sweep-" + os.urandom(8).hex()
    with child(*SLEEP) as stranger, child(*SLEEP) as by_session:
        with child("sh", "-c", "sleep 1000 & setsid sleep 1000 & wait", env={"AGENTD_GROUP_TOKEN": token}):
            marks = Marks(token=token, sessions=frozenset([by_session.identity]))
            _wait_for(lambda: len(find(marks)) == 4)
            assert sweep(marks, grace_s=10) == ()
            assert find(marks) == []
            assert not is_alive(by_session.identity)
            assert is_alive(stranger.identity)


def test_a_session_id_that_belongs_to_another_now_is_left_alone() -> None:
    with child(*SLEEP) as one:
        long_gone = ProcessIdentity(one.pid, one.identity.start_time - 100)
        assert find(Marks(sessions=frozenset([long_gone]))) == []


def test_descent_is_followed_to_its_ends_and_does_not_hold_its_root() -> None:
    with child("sh", "-c", "setsid sh -c 'sleep 1000; :' & wait") as one:
        marks = Marks(ancestors=frozenset([one.pid]))
        _wait_for(lambda: len(find(marks)) == 2)
        assert one.pid not in {stat.pid for stat in find(marks)}
        assert sweep(marks, grace_s=10) == ()


def test_importing_the_library_needs_neither_torch_nor_grpc_nor_an_event_loop() -> None:
    code = "import agentd.elastic, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "agentd.elastic" in loaded
    assert not loaded & {"torch", "grpc", "google", "asyncio", "psutil", "ctypes"}
