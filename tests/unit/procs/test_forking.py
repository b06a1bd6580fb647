"""Programs that are started together: each as if it were alone, and none is left that was not given.

By a process with one thread, which forks them, and by one with two, which has a shim for each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentd.procs import forking
from agentd.procs import spawn as spawning
from agentd.procs.spawn import Child, Order, SpawnError, spawn_all
from tests.support import leaks
from tests.support.threads import another, in_as_many_as_asked
from tests.support.waiting import wait_until

SLEEP = ("sleep", "1000")
MANY = 20
# Not those that the C library keeps for itself: nobody can set them by it, and posix_spawn has them ignored.
ALL_SIGNALS = sum(1 << (number - 1) for number in signal.valid_signals())

in_both_ways = pytest.mark.parametrize("threads", [1, 2])


@contextlib.contextmanager
def ended(children: list[Child]) -> Iterator[list[Child]]:
    try:
        yield children
    finally:
        for child in children:
            child.popen.kill()
            child.popen.wait()
            child.reap()


def order(*argv: str, **env: str) -> Order:
    return Order(argv=argv, env={**os.environ, **env})


def has_only(child: Child, log: Path) -> bool:
    """Nothing, its log twice, and its lifeline."""
    found = {}
    for path in Path(f"/proc/{child.pid}/fd").iterdir():
        # A program that starts opens and closes files of its own.
        with contextlib.suppress(FileNotFoundError):
            found[int(path.name)] = str(path.readlink())
    streams = [found.pop(number, "") for number in range(3)]
    return streams == ["/dev/null", str(log), str(log)] and [to[:5] for to in found.values()] == ["pipe:"]


def blocked_or_ignored(child: Child) -> int:
    masks = [
        int(line.split()[1], 16)
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        if line.startswith(("SigBlk", "SigIgn"))
    ]
    assert len(masks) == 2
    return (masks[0] | masks[1]) & ALL_SIGNALS


def refuse_after(started: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has no room for more processes."""
    times = iter(range(started))
    if threads == 1:
        libc = forking._libc()
        real = libc.fork
        monkeypatch.setattr(libc, "fork", lambda: real() if next(times, None) is not None else -1)
        monkeypatch.setattr(libc, "errno", lambda: errno.EAGAIN)
        return
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        if next(times, None) is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return popen(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", start)


@in_both_ways
@in_as_many_as_asked
def test_many_run_at_once_each_in_a_session_of_its_own_with_its_own_environment(threads: int) -> None:
    with ended(list(spawn_all([order(*SLEEP, NUMBER=str(number)) for number in range(MANY)]))) as children:
        assert len({child.pid for child in children}) == MANY
        for number, child in enumerate(children):
            assert os.getsid(child.pid) == child.pid
            assert Path(f"/proc/{child.pid}/comm").read_text().strip() == "sleep"
            assert f"NUMBER={number}".encode() in Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")


@in_both_ways
@in_as_many_as_asked
def test_nothing_of_this_process_is_left_in_them(tmp_path: Path, threads: int) -> None:
    """No descriptor that somebody made inheritable, no ignored or blocked signal, no file of the others."""
    inherited = os.dup(2)
    os.set_inheritable(inherited, True)
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, inherited)
        stack.callback(signal.signal, signal.SIGHUP, former)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        logs = [os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT) for number in range(3)]
        orders = [Order(argv=SLEEP, env=os.environ, stdout_fd=log, stderr_fd=log) for log in logs]
        children = stack.enter_context(ended(list(spawn_all(orders))))
        for log in logs:
            os.close(log)
        for number, child in enumerate(children):
            wait_until(partial(has_only, child, tmp_path / str(number)))
            assert not blocked_or_ignored(child)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {*blocked, signal.SIGUSR1}


@in_both_ways
@in_as_many_as_asked
def test_the_first_that_cannot_be_started_is_named_and_those_after_it_are_ended(threads: int) -> None:
    given: list[Child] = []
    before = {process.pid for process in leaks.descendants(os.getpid())}
    with ended(given):
        with pytest.raises(SpawnError, match="/no/such/program"):
            # `extend` takes what was given before the error, too.
            given.extend(spawn_all([order(*SLEEP), order("/no/such/program"), order(*SLEEP)]))
        assert len(given) == 1
        left = {process.pid for process in leaks.descendants(os.getpid())} - before
        assert left == {given[0].pid}


@in_both_ways
@in_as_many_as_asked
def test_a_directory_that_is_not_there_is_named(threads: int) -> None:
    with pytest.raises(SpawnError, match="as its directory") as caught:
        list(spawn_all([Order(argv=SLEEP, env=os.environ, cwd="/no/such/folder")]))
    assert caught.value.path == "/no/such/folder"
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("env", [{"A": "b\0c"}, {"A=B": "c"}, {"": "c"}], ids=["null", "equals", "empty"])
@in_both_ways
@in_as_many_as_asked
def test_an_environment_that_no_program_can_have_is_refused(env: dict[str, str], threads: int) -> None:
    with pytest.raises(SpawnError) as caught:
        list(spawn_all([Order(argv=["/bin/true"], env=env)]))
    assert caught.value.errno == errno.EINVAL


@in_both_ways
@in_as_many_as_asked
def test_those_that_nobody_asks_for_are_ended(threads: int) -> None:
    before = {process.pid for process in leaks.descendants(os.getpid())}
    starting = spawn_all([order(*SLEEP) for _ in range(3)])
    with ended([next(starting)]) as children:
        starting.close()  # type: ignore[attr-defined]
        left = {process.pid for process in leaks.descendants(os.getpid())} - before
        assert left == {children[0].pid}


@in_both_ways
@in_as_many_as_asked
def test_a_kernel_that_forks_no_more_leaves_those_that_it_forked(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    given: list[Child] = []
    held = len(os.listdir("/proc/self/fd"))
    refuse_after(2, threads, monkeypatch)
    with ended(given):
        with pytest.raises(SpawnError, match="Resource temporarily unavailable"):
            given.extend(spawn_all([order(*SLEEP)] * 4))
        assert len(given) == 2
    assert len(os.listdir("/proc/self/fd")) == held


WITHOUT_STREAMS = """
import os, sys
os.close(0), os.close(1)
from agentd.procs.spawn import Order, spawn_all
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
assert log < 3
(child,) = spawn_all([Order(argv=["/bin/sh", "-c", "cat; echo out; echo err >&2"], env=os.environ,
                            stdout_fd=log, stderr_fd=log)])
assert child.popen.wait() == 0
"""


def test_a_process_without_streams_of_its_own_gives_its_children_theirs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", WITHOUT_STREAMS, str(log)], check=True, timeout=60)
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_with_threads_each_is_started_by_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_prepared: object) -> None:
        raise AssertionError("forked with threads")

    monkeypatch.setattr(spawning, "fork_all", never)
    with another(), ended(list(spawn_all([order(*SLEEP), order(*SLEEP)]))) as children:
        assert len(children) == 2


@in_as_many_as_asked
def test_with_one_thread_they_are_forked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[int] = []

    def counted(prepared: Sequence[forking.Prepared]) -> list[forking.Forked | OSError]:
        forked.append(len(prepared))
        return forking.fork_all(prepared)

    monkeypatch.setattr(spawning, "fork_all", counted)
    with ended(list(spawn_all([order(*SLEEP), order(*SLEEP)]))):
        assert forked == [2]
