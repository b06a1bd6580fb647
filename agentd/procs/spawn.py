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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeAlias

from agentd.procs import prctl
from agentd.procs.exits import ExitInfo, ExitWatch
from agentd.procs.identity import ProcessIdentity, identify
from agentd.procs.lifeline import Lifeline
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

DEATHLINK = str(Path(__file__).with_name("deathlink.py"))
LINK_TIMEOUT_S = 30.0
RESET_BY_SUBPROCESS = {signal.SIGPIPE, signal.SIGXFSZ}

Starter: TypeAlias = (
    "Callable[[str, Sequence[str], int, Lifeline | None, dict[str, Any]], subprocess.Popen[bytes]]"
)


class SpawnError(OSError):
    """A program could not be started. `filename` is what is wrong: the program, or the directory."""

    def __init__(self, number: int, path: str, problem: str) -> None:
        super().__init__(number, problem, path)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"cannot start {self.path}: {self.problem}"


@dataclass(slots=True)
class Child:
    """A started program, its own session's leader. Its owner reaps it."""

    identity: ProcessIdentity
    popen: subprocess.Popen[bytes]
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
    program = find_program(argv[0], env)
    start = _starter(parent_death_signal)
    try:
        with contextlib.ExitStack() as stack:
            empty = stack.enter_context(open(os.devnull, "rb"))
            lifeline = stack.enter_context(Lifeline()) if parent_death_signal and new_session else None
            options = {
                "env": dict(env),
                "cwd": cwd,
                "stdin": empty,
                "stdout": stdout_fd,
                "stderr": stderr_fd,
                "start_new_session": new_session,
                "pass_fds": () if lifeline is None else (lifeline.theirs,),
            }
            popen = start(program, argv, parent_death_signal or 0, lifeline, options)
    except OSError as error:
        raise _explained(error, program, cwd) from error
    except ValueError as error:
        raise SpawnError(errno.EINVAL, program, str(error)) from error
    try:
        identity = identify(popen.pid)
    except OSError as error:
        # Whom nobody can name nobody can end later.
        popen.kill()
        popen.wait()
        if lifeline is not None:
            lifeline.close()
        raise _explained(error, program, cwd) from error
    assert identity is not None, "an unreaped child is always in /proc"
    return Child(identity, popen, lifeline=lifeline)


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


def _starter(death_signal: int | None) -> Starter:
    if not death_signal and not _ignored_signals() and not signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return _start_plain
    return _start_forked if len(os.listdir("/proc/self/task")) == 1 else _start_linked


def _ignored_signals() -> list[int]:
    """Those a child would go on ignoring; `subprocess` itself resets the ones Python ignores."""
    return [
        number
        for number in signal.valid_signals() - RESET_BY_SUBPROCESS
        if signal.getsignal(number) is signal.SIG_IGN
    ]


def _start_plain(
    program: str,
    argv: Sequence[str],
    _death_signal: int,
    _lifeline: Lifeline | None,
    options: dict[str, Any],
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(list(argv), executable=program, **options)


def _start_forked(
    program: str,
    argv: Sequence[str],
    death_signal: int,
    lifeline: Lifeline | None,
    options: dict[str, Any],
) -> subprocess.Popen[bytes]:
    prctl.load()
    parent = os.getpid()
    ignored = _ignored_signals()

    def prepare() -> None:
        if death_signal:
            prctl.set_parent_death_signal(death_signal)
            # The parent may have died before the link was made.
            if os.getppid() != parent:
                os._exit(128 + death_signal)
        if lifeline is not None:
            # Here, not by the parent afterwards: by then the program runs and may have started others.
            lifeline.tie(os.getpid(), death_signal)
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    # One thread only, so none can hold a lock that the child would wait for.
    return subprocess.Popen(list(argv), executable=program, preexec_fn=prepare, **options)  # noqa: PLW1509


def _start_linked(
    program: str,
    argv: Sequence[str],
    death_signal: int,
    lifeline: Lifeline | None,
    options: dict[str, Any],
) -> subprocess.Popen[bytes]:
    report, told = os.pipe2(os.O_CLOEXEC)
    try:
        tied = -1 if lifeline is None else lifeline.theirs
        numbers = map(str, (int(death_signal), os.getpid(), told, tied))
        shim = [sys.executable, "-I", "-S", DEATHLINK, *numbers]
        try:
            options = {**options, "pass_fds": (told, *options["pass_fds"])}
            popen = subprocess.Popen([*shim, program, *argv], **options)
        finally:
            os.close(told)
        number = _read_report(report)
        if number:
            popen.wait()
            raise OSError(number, os.strerror(number), program)
        return popen
    finally:
        os.close(report)


def _read_report(report: int) -> int:
    """The errno of the failed start; 0 once the program runs, or if its start takes very long."""
    readable, _, _ = select.select([report], [], [], LINK_TIMEOUT_S)
    data = os.read(report, 16) if readable else b""
    return int(data) if data.isdigit() else 0


def _explained(error: OSError, program: str, cwd: str | None) -> SpawnError:
    number = error.errno or errno.EIO
    problem = os.strerror(number)
    if cwd is not None and os.fsdecode(error.filename or "") == cwd:
        return SpawnError(number, cwd, f"as its directory: {problem}")
    if number == errno.ENOENT and Path(cwd or "", program).exists():
        problem = "the interpreter its first line names is missing"
    elif number == errno.ENOEXEC:
        problem = "it is no program; a script needs a first line like #!/bin/sh"
    elif number == errno.EACCES:
        problem = f"{problem}: is it an executable file?"
    return SpawnError(number, program, problem)
