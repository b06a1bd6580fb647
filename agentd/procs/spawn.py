"""Start a program: own session, clean signals, no stray descriptors, dead when its parent dies.

A process with one thread forks, which leaves room to set the link to the parent and the signals; one with
threads lets `deathlink.py` do it, because between fork and exec of such a process no Python may run. Where
there is nothing to set, neither is needed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Protocol, TypeAlias

from agentd.procs.exits import ExitInfo, ExitWatch
from agentd.procs.forking import Prepared, Program, fork_all
from agentd.procs.identity import ProcessIdentity, identify
from agentd.procs.lifeline import Lifeline
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

DEATHLINK = str(Path(__file__).with_name("deathlink.py"))
LINK_TIMEOUT_S = 30.0
RESET_BY_SUBPROCESS = {signal.SIGPIPE, signal.SIGXFSZ}


class SpawnError(OSError):
    """A program could not be started. `filename` is what is wrong: the program, or the directory."""

    def __init__(self, number: int, path: str, problem: str) -> None:
        super().__init__(number, problem, path)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"cannot start {self.path}: {self.problem}"


class Started(Protocol):
    """A child process; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def kill(self) -> None: ...


@dataclass(slots=True)
class Child:
    """A started program, its own session's leader. Its owner reaps it."""

    identity: ProcessIdentity
    popen: Started
    started_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    lifeline: Lifeline | None = None
    """What its process group lives by."""

    @property
    def pid(self) -> int:
        """Its pid, and the id of its session and process group."""
        return self.identity.pid

    def signal_group(self, signum: int) -> None:
        """Signal its whole process group. Only while it is unreaped: until then the id is its own."""
        assert self.popen.returncode is None, "a reaped child's group id may belong to a stranger"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)

    def watch(self, waiter: Waiter, on_exit: Callable[[ExitInfo], object]) -> ExitWatch:
        """Have `on_exit` called from the waiter when it has ended. It is not reaped by that."""
        return ExitWatch(waiter, self.pid, on_exit)

    def reap(self) -> None:
        """Take its exit status, if it has ended; its pid is free afterwards."""
        if self.popen.poll() is not None and self.lifeline is not None:
            self.lifeline.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A program to be started, as `spawn` has it."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None = None
    stdout_fd: int | None = None
    stderr_fd: int | None = None
    parent_death_signal: int | None = signal.SIGKILL
    new_session: bool = True


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    stdout_fd: int | None = None,
    stderr_fd: int | None = None,
    parent_death_signal: int | None = signal.SIGKILL,
    new_session: bool = True,
) -> Child:
    """Start `argv`; raises `SpawnError`. Streams that are not given are this process' own; stdin is empty.

    The link follows the calling thread: with its end the child gets `parent_death_signal`. What the child
    starts in its session's first group gets it when this process is gone: a descriptor tells the kernel.
    """
    order = Order(
        argv=argv,
        env=env,
        cwd=cwd,
        stdout_fd=stdout_fd,
        stderr_fd=stderr_fd,
        parent_death_signal=parent_death_signal,
        new_session=new_session,
    )
    (child,) = spawn_all([order])
    return child


def spawn_all(orders: Sequence[Order]) -> Iterator[Child]:
    """Start several, together where that is sooner, and give them in their order.

    Raises `SpawnError` for the first that cannot be started. What was not given by then, or when nobody asks
    for more, is ended again.
    """
    ways = [_way(order.parent_death_signal) for order in orders]
    if all(way is None for way in ways):
        yield from _forked_together(orders)
        return
    for order, way in zip(orders, ways, strict=True):
        if way is None:
            yield from _forked_together([order])
        else:
            yield _started_by(way, order)


def find_program(name: str, env: Mapping[str, str]) -> str:
    """Where the program of that name is, by the PATH of `env`; raises `SpawnError`."""
    if "/" in name:
        return name
    # Late: a host is given paths, and this loads three compression libraries.
    import shutil

    found = shutil.which(name, path=env.get("PATH", os.defpath))
    if found is None:
        raise SpawnError(errno.ENOENT, name, "there is no such program on the PATH it would run with")
    return found


Way: TypeAlias = "Callable[[Program], subprocess.Popen[bytes]]"


def _way(death_signal: int | None) -> Way | None:
    """None: by a fork."""
    if not death_signal and not _ignored_signals() and not signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return _start_plain
    return None if len(os.listdir("/proc/self/task")) == 1 else _start_linked


def _ignored_signals() -> list[int]:
    """Those a child would go on ignoring; `subprocess` itself resets the ones Python ignores."""
    return [
        number
        for number in signal.valid_signals() - RESET_BY_SUBPROCESS
        if signal.getsignal(number) is signal.SIG_IGN
    ]


@contextlib.contextmanager
def _program(order: Order) -> Iterator[Program]:
    """What only the child needs of it is closed here at the end, all of it after an exception."""
    path = find_program(order.argv[0], order.env)
    with contextlib.ExitStack() as stack:
        empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, empty)
        linked = bool(order.parent_death_signal) and order.new_session
        yield Program(
            path=path,
            argv=order.argv,
            env=order.env,
            cwd=order.cwd,
            streams=(empty, order.stdout_fd, order.stderr_fd),
            new_session=order.new_session,
            death_signal=order.parent_death_signal or 0,
            lifeline=stack.enter_context(Lifeline()) if linked else None,
        )


def _forked_together(orders: Sequence[Order]) -> Iterator[Child]:
    prepared: list[Prepared] = []
    with contextlib.ExitStack() as stack:
        problem: SpawnError | None = None
        for order in orders:
            try:
                prepared.append(stack.enter_context(_prepared(order)))
            except SpawnError as error:
                problem = error
                break
        results = fork_all(prepared)
    left = deque(zip(results, [each.program for each in prepared], strict=False))
    try:
        while left:
            child = _child_of(*left[0])
            left.popleft()
            yield child
    finally:
        for result, program in left:
            _abandon(result, program)
        for each in prepared[len(results) :]:
            _close_lifeline(each.program)
    if problem is not None:
        raise problem


@contextlib.contextmanager
def _prepared(order: Order) -> Iterator[Prepared]:
    with contextlib.ExitStack() as stack:
        try:
            program = stack.enter_context(_program(order))
        except SpawnError:
            raise
        except OSError as error:
            raise SpawnError(error.errno or errno.EIO, order.argv[0], error.strerror or str(error)) from error
        try:
            prepared = stack.enter_context(Prepared(program))
        except (OSError, ValueError) as error:
            raise _explained(error, program) from error
        yield prepared


def _child_of(result: Started | OSError, program: Program) -> Child:
    """Whom nobody can name nobody can end later: that is an error too."""
    try:
        if isinstance(result, OSError):
            raise result
        identity = identify(result.pid)
    except OSError as error:
        raise _explained(error, program) from error
    assert identity is not None, "an unreaped child is always in /proc"
    return Child(identity, result, lifeline=program.lifeline)


def _started_by(way: Way, order: Order) -> Child:
    with _program(order) as program:
        try:
            started = way(program)
        except (OSError, ValueError) as error:
            raise _explained(error, program) from error
        try:
            return _child_of(started, program)
        except SpawnError:
            _abandon(started, program)
            raise


def _abandon(result: Started | OSError, program: Program) -> None:
    if not isinstance(result, OSError):
        result.kill()
        result.wait()
    _close_lifeline(program)


def _close_lifeline(program: Program) -> None:
    if program.lifeline is not None:
        program.lifeline.close()


def _start_plain(program: Program) -> subprocess.Popen[bytes]:
    return _popen(program, program.path, program.argv)


def _start_linked(program: Program) -> subprocess.Popen[bytes]:
    report, told = os.pipe2(os.O_CLOEXEC)
    try:
        tied = -1 if program.lifeline is None else program.lifeline.theirs
        # Before Python 3.11 a signal as text is its name.
        numbers = (program.death_signal, os.getpid(), told, tied)
        shim = [sys.executable, "-I", "-S", DEATHLINK, *(str(int(number)) for number in numbers)]
        try:
            popen = _popen(program, sys.executable, [*shim, program.path, *program.argv], told)
        finally:
            os.close(told)
        number = _read_report(report)
        if number:
            popen.wait()
            raise OSError(number, os.strerror(number), program.path)
        return popen
    finally:
        os.close(report)


def _popen(program: Program, path: str, argv: Sequence[str], *passed: int) -> subprocess.Popen[bytes]:
    if "" in program.env:
        # All else that no environment can have `subprocess` refuses too.
        raise ValueError("illegal environment variable name")
    stdin, stdout, stderr = program.streams
    lifeline = program.lifeline
    return subprocess.Popen(
        list(argv),
        executable=path,
        env=dict(program.env),
        cwd=program.cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=program.new_session,
        pass_fds=passed if lifeline is None else (*passed, lifeline.theirs),
    )


def _read_report(report: int) -> int:
    """The errno of the failed start; 0 once the program runs, or if its start takes very long."""
    readable, _, _ = select.select([report], [], [], LINK_TIMEOUT_S)
    data = os.read(report, 16) if readable else b""
    return int(data) if data.isdigit() else 0


def _explained(error: OSError | ValueError, program: Program) -> SpawnError:
    if isinstance(error, ValueError):
        return SpawnError(errno.EINVAL, program.path, str(error))
    number, cwd = error.errno or errno.EIO, program.cwd
    problem = os.strerror(number)
    if cwd is not None and os.fsdecode(error.filename or "") == cwd:
        return SpawnError(number, cwd, f"as its directory: {problem}")
    if number == errno.ENOENT and Path(cwd or "", program.path).exists():
        problem = "the interpreter its first line names is missing"
    elif number == errno.ENOEXEC:
        problem = "it is no program; a script needs a first line like #!/bin/sh"
    elif number == errno.EACCES:
        problem = f"{problem}: is it an executable file?"
    return SpawnError(number, program.path, problem)
