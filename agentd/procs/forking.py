"""Fork and exec from a process with one thread: several at once, then one wait for all their execs.

Between fork and exec the child makes itself what it is to be, by calls of the C library with arguments that
were made before: each page that a child touches is copied, and so is each one that its parent touches before
the exec, which is what a start costs. What goes wrong there is told through a pipe that an exec closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import operator
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from agentd.procs import prctl
from agentd.procs.lifeline import Lifeline
from agentd.procs.procfs import content
from agentd.quickdata import dataclass

ABOVE_STREAMS = 3

_F_SETSIG: int = fcntl.F_SETSIG  # type: ignore[attr-defined, unused-ignore]
_SIGNAL_SET_BYTES = 128
_MOST_REPORTED = 64
_HANDLED = (b"SigIgn:", b"SigCgt:")
_DIRECTORY, _PROGRAM = b"directory", b"program"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a child is to become."""

    path: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None
    """None: this process' own."""
    streams: Sequence[int | None]
    """What its descriptors 0, 1 and 2 are; `None`: this process' own."""
    new_session: bool
    death_signal: int
    """What it gets when the calling thread ends, its process group when the lifeline hangs up; 0: none."""
    lifeline: Lifeline | None


class Forked:
    """A child of this process, reaped by `poll` or `wait` as a `subprocess.Popen` is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """As `subprocess` has it; None until it was reaped, 255 if somebody else has."""

    def poll(self) -> int | None:
        """Its `returncode`, after a look."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Its `returncode`, once it has ended."""
        code = self._reap(0)
        assert code is not None
        return code

    def kill(self) -> None:
        """SIGKILL, unless it was reaped."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _reap(self, flags: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, flags)
            except ChildProcessError:
                self.returncode = 255
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Prepared:
    """All a child needs, made before the fork. As a context: given back at its end."""

    def __init__(self, program: Program) -> None:
        """Raises `OSError`, and `ValueError` for what no program can be started with."""
        self.program = program
        self.path = os.fsencode(program.path)
        self.argv = _c_strings([os.fsencode(argument) for argument in program.argv])
        self.env = _c_strings([_assignment(name, value) for name, value in program.env.items()])
        self.cwd = None if program.cwd is None else os.fsencode(program.cwd)
        with contextlib.ExitStack() as stack:
            self.report, told = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, self.report)
            self._told = stack.enter_context(contextlib.ExitStack())
            self._told.callback(os.close, told)
            self.told = _above_streams(self._told, told)
            self.streams = [
                (number, _above_streams(stack, fd))
                for number, fd in enumerate(program.streams)
                if fd is not None
            ]
            self._resources = stack.pop_all()

    def answer(self) -> OSError | None:
        """Wait until the forked child's program runs, or for why it does not."""
        self._told.close()
        said = os.read(self.report, _MOST_REPORTED)
        if not said:
            return None
        number, where = said.split()
        path = self.program.cwd if where == _DIRECTORY else self.program.path
        return OSError(int(number), os.strerror(int(number)), path)

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()


def fork_all(prepared: Sequence[Prepared]) -> list[Forked | OSError]:
    """Start a child for each, and wait until their programs run; an error for one that cannot be started.

    After the first that the kernel forks no more is tried: the list is shorter then. Nothing but its streams
    and its end of the lifeline stays open in a child; its signals are the default ones, and one that comes
    before its program runs is not lost.
    """
    pids: list[int] = []
    try:
        refusal = _fork_each(prepared, pids)
        # Only now: a child that was forked later has the pipes of earlier ones too, until it is another
        # program.
        answers = [each.answer() for each in prepared[: len(pids)]]
    except BaseException:
        # Of a signal's handler: nobody else knows of them.
        for pid in pids:
            _end(Forked(pid))
        raise
    found: list[Forked | OSError] = []
    for pid, problem in zip(pids, answers, strict=True):
        child = Forked(pid)
        if problem is not None:
            child.wait()
        found.append(problem or child)
    return found if refusal is None else [*found, refusal]


def _end(child: Forked) -> None:
    child.kill()
    child.wait()


def _fork_each(prepared: Sequence[Prepared], pids: list[int]) -> OSError | None:
    """Adds the children's pids; answers why the kernel forks no more."""
    libc, parent = _libc(), os.getpid()
    inherited, handled = _inherited(), _handled_signals()
    with _undisturbed(libc):
        # Nothing else in this loop: what it touches is copied once for each child.
        for each in prepared:
            pid = libc.fork()
            if pid == 0:
                _become(libc, each, inherited, handled, parent)
            if pid < 0:
                number = libc.errno()
                return OSError(number, os.strerror(number), each.program.path)
            pids.append(pid)
    return None


def _become(
    libc: _Libc, each: Prepared, inherited: Sequence[int], handled: Sequence[int], parent: int
) -> NoReturn:
    """In the child. No import, no lock, and as little of Python as can be."""
    program, where = each.program, _PROGRAM
    try:
        failed = program.new_session and libc.setsid() == -1
        if program.death_signal:
            failed |= libc.prctl(prctl.PR_SET_PDEATHSIG, program.death_signal, 0, 0, 0) == -1
            # The parent may have died before the link was made.
            if libc.getppid() != parent:
                os._exit(128 + program.death_signal)
        if program.lifeline is not None:
            # Here, not by the parent afterwards: by then the program runs and may have started others.
            fd = program.lifeline.theirs
            failed |= libc.fcntl(fd, _F_SETSIG, program.death_signal) == -1
            failed |= libc.fcntl(fd, fcntl.F_SETOWN, -libc.getpid()) == -1
            failed |= libc.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC) == -1
            failed |= libc.fcntl(fd, fcntl.F_SETFD, 0) == -1
        for number, fd in each.streams:
            failed |= libc.dup2(fd, number) == -1
        for fd in inherited:
            libc.close(fd)
        for number in handled:
            libc.signal(number, None)
        libc.sigprocmask(signal.SIG_SETMASK, libc.no_signals, None)
        if not failed and each.cwd is not None:
            where = _DIRECTORY
            failed = libc.chdir(each.cwd) == -1
        if not failed:
            where = _PROGRAM
            libc.execve(each.path, each.argv, each.env)
        os.write(each.told, b"%d %s" % (libc.errno(), where))
    finally:
        os._exit(127)


class _Libc:
    """The functions a child calls. The interpreter's lock stays held: there is nobody else to have it.

    Not `os.fork`: what Python does after that makes a child good for a life of its own, by hooks of modules,
    new locks and new random numbers, and touches more than all else here. This child becomes another program,
    and in a process with one thread nobody holds a lock.
    """

    def __init__(self) -> None:
        # Late: ctypes costs time and memory, and only a process that starts others needs it.
        import ctypes

        libc = ctypes.PyDLL(None, use_errno=True)
        self.errno = ctypes.get_errno
        self.no_signals = ctypes.create_string_buffer(_SIGNAL_SET_BYTES)
        self.all_signals = ctypes.create_string_buffer(b"\xff" * _SIGNAL_SET_BYTES)
        self.former_signals = ctypes.create_string_buffer(_SIGNAL_SET_BYTES)
        self.fork: Any = libc.fork
        self.setsid: Any = libc.setsid
        self.prctl: Any = libc.prctl
        self.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
        self.getpid: Any = libc.getpid
        self.getppid: Any = libc.getppid
        self.fcntl: Any = libc.fcntl
        self.dup2: Any = libc.dup2
        self.close: Any = libc.close
        self.signal: Any = libc.signal
        self.sigprocmask: Any = libc.sigprocmask
        self.chdir: Any = libc.chdir
        self.execve: Any = libc.execve


@functools.cache
def _libc() -> _Libc:
    return _Libc()


def _c_strings(texts: Sequence[bytes]) -> Any:
    """A null-ended array of them. Raises `ValueError` if one has a null in it."""
    import ctypes

    if any(b"\0" in text for text in texts):
        raise ValueError("embedded null byte")
    return (ctypes.c_char_p * (len(texts) + 1))(*texts, None)


# A process that starts workers has much the same environment for each of them, round after round.
@functools.lru_cache(maxsize=1024)
def _assignment(name: str, value: str) -> bytes:
    if not name or "=" in name:
        raise ValueError("illegal environment variable name")
    return os.fsencode(name) + b"=" + os.fsencode(value)


@contextlib.contextmanager
def _undisturbed(libc: _Libc) -> Iterator[None]:
    """No signal and no collection of garbage between a fork and what the child does first."""
    collecting = gc.isenabled()
    libc.sigprocmask(signal.SIG_BLOCK, None, libc.former_signals)
    # All of it within: the handler of a signal that came just before runs in between, and may raise.
    try:
        gc.disable()
        libc.sigprocmask(signal.SIG_BLOCK, libc.all_signals, None)
        yield
    finally:
        if collecting:
            gc.enable()
        libc.sigprocmask(signal.SIG_SETMASK, libc.former_signals, None)


def _handled_signals() -> list[int]:
    """Those that are ignored here, which an exec would keep, or caught. The kernel's word: one read."""
    masks = [line.split()[1] for line in content("/proc/self/status").splitlines() if line[:7] in _HANDLED]
    handled = functools.reduce(operator.or_, (int(mask, 16) for mask in masks), 0)
    return [number for number in range(1, handled.bit_length() + 1) if handled >> (number - 1) & 1]


def _inherited() -> list[int]:
    """The descriptors beyond the streams that a child would keep: those that Python did not make."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        # The one that lists them is closed by now.
        with contextlib.suppress(OSError):
            if int(name) >= ABOVE_STREAMS and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _above_streams(stack: contextlib.ExitStack, fd: int) -> int:
    """The descriptor, under a number that making the child's streams does not take."""
    if fd >= ABOVE_STREAMS:
        return fd
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE_STREAMS)
    stack.callback(os.close, copy)
    return copy
