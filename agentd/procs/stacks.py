"""The stacks of a process that hangs, taken without ever waiting for it.

Everything that takes time is a generator that yields how many seconds it wants to pause, gets the monotonic
time back, and returns its result: whoever runs it may do other things between. Three may tell of a Python
process: py-spy, if it is installed; the process itself, if it answers to `stack_signal`; and faulthandler on
SIGABRT, which ends it. The kernel's view of each thread needs nobody.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TypeAlias, TypeVar

from agentd.procs import kernel_view, procfs
from agentd.procs.exits import ExitInfo, peek_exit
from agentd.procs.identity import ProcessIdentity, is_alive, send_signal
from agentd.procs.spawn import Child, SpawnError, spawn
from agentd.procs.stack_signal import open_sheet
from agentd.quickdata import dataclass

__all__ = ["ABORT_BOUND_S", "COLLECT_BOUND_S", "Helpers", "Stacks", "Steps", "abort", "append", "collect"]

PY_SPY_BOUND_S = 3.0
ANSWER_BOUND_S = 1.0
COLLECT_BOUND_S = PY_SPY_BOUND_S + ANSWER_BOUND_S
"""The longest `collect` takes of its runner's time."""
ABORT_BOUND_S = 1.0
LOOK_S = 0.02
MOST_BYTES = 1 << 20
MOST_HELPERS = 8
LOST = ExitInfo(None, None)

T = TypeVar("T")
Steps: TypeAlias = "Generator[float, float, T]"


@dataclass(frozen=True, slots=True)
class Stacks:
    """What was learned about one process."""

    python: str = ""
    """Empty if nobody could tell."""
    source: str = ""
    """Who told `python`: "py-spy", "faulthandler"."""
    kernel: str = ""
    notes: str = ""
    """Why a way that was there failed."""

    def text(self) -> str:
        """All of it, for a file that people read."""
        python = self.python.strip() or "(nobody could tell: install py-spy, or use agentd's FileTimerClient)"
        parts = [f"--- stacks{f', by {self.source}' if self.source else ''}\n{python}\n"]
        if self.notes:
            parts.append(f"--- notes\n{self.notes.strip()}\n")
        if self.kernel:
            parts.append(f"--- threads, by the kernel\n{self.kernel}")
        return "\n".join(parts)


class Helpers:
    """The py-spys that run: few at a time, and reaped when they have ended."""

    def __init__(self, most: int = MOST_HELPERS) -> None:
        self._most = most
        self._running: list[Child] = []
        self._exits: dict[int, ExitInfo] = {}

    @property
    def busy(self) -> bool:
        """Whether another one must wait."""
        return len(self._running) >= self._most

    def start(self, argv: list[str], output: int) -> Child:
        """Start one that writes to the descriptor `output`; raises `SpawnError`."""
        child = spawn(argv, env=os.environ, stdout_fd=output, stderr_fd=output)
        self._running.append(child)
        self._exits.pop(child.pid, None)  # of an earlier one with this pid, which was killed
        return child

    def tend(self) -> None:
        """Reap those that have ended."""
        for child in tuple(self._running):
            if (info := peek_exit(child.pid)) is not None:
                child.reap()
                self._running.remove(child)
                self._exits[child.pid] = info

    def exit_of(self, child: Child) -> ExitInfo | None:
        """How it ended; `None` while it runs."""
        self.tend()
        return self._exits.get(child.pid)

    def end(self, child: Child) -> None:
        """Done with this one; if it still runs it is killed, and reaped by and by."""
        if self.exit_of(child) is None:
            child.signal_group(signal.SIGKILL)
        self._exits.pop(child.pid, None)

    def close(self, bound_s: float = 1.0) -> None:
        """Kill and reap all, which takes milliseconds, and `bound_s` at most."""
        for child in tuple(self._running):
            self.end(child)
        deadline = time.monotonic() + bound_s
        while self._running and time.monotonic() < deadline:
            time.sleep(0.001)
            self.tend()
        self._exits.clear()


def collect(identity: ProcessIdentity, now: float, helpers: Helpers) -> Steps[Stacks]:
    """Learn what the process does. It stays alive, and stopped for milliseconds at most."""
    kernel = kernel_view.describe_threads(identity.pid)
    now, python, notes = yield from _ask_py_spy(identity, now, helpers)
    source = "py-spy" if python else ""
    if not python:
        python = yield from _ask_itself(identity, now)
        source = "faulthandler" if python else ""
    return Stacks(python, source, kernel, notes)


def abort(identity: ProcessIdentity, now: float) -> Steps[str | None]:
    """Have a process that catches SIGABRT tell its stacks on its stderr and end by that, leaving no core.

    Returns what it wrote, as far as that went to a file; `None` if it was not asked, because it does not
    catch the signal or is gone. It may still live afterwards.
    """
    if not kernel_view.catches(identity.pid, signal.SIGABRT):
        return None
    _forbid_core(identity.pid)
    with _opened_stderr(identity.pid) as stderr:
        start = os.fstat(stderr).st_size if stderr is not None else 0
        deadline = now + ABORT_BOUND_S
        if not send_signal(identity, signal.SIGABRT):
            return None
        while now < deadline and is_alive(identity):
            now = yield LOOK_S
        if stderr is None:
            return "(written to its stderr)\n"
        return os.pread(stderr, MOST_BYTES, start).decode(errors="replace")


def append(path: Path, text: str) -> None:
    """Write at the end of the file, in one piece where the disk allows; raises `OSError`."""
    data = text.encode(errors="backslashreplace")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb", buffering=0) as file:
        file.write(data)


def _ask_py_spy(identity: ProcessIdentity, now: float, helpers: Helpers) -> Steps[tuple[float, str, str]]:
    """The time, the stacks, and why there are none."""
    program = _find_py_spy(identity.pid)
    if program is None:
        return now, "", ""
    deadline = now + PY_SPY_BOUND_S
    helpers.tend()
    while helpers.busy:
        now = yield LOOK_S
        helpers.tend()
        if now >= deadline:
            return now, "", f"too many processes were asked at once for {program}"
    try:
        output = os.memfd_create("py-spy")
    except OSError as error:
        return now, "", str(error)
    try:
        return (
            yield from _run_py_spy([program, "dump", *_target(identity.pid)], output, now, deadline, helpers)
        )
    except SpawnError as error:
        return now, "", str(error)
    finally:
        os.close(output)


def _run_py_spy(
    argv: list[str], output: int, now: float, deadline: float, helpers: Helpers
) -> Steps[tuple[float, str, str]]:
    child = helpers.start(argv, output)
    try:
        while (info := helpers.exit_of(child)) is None and now < deadline:
            if os.fstat(output).st_size > MOST_BYTES:
                break
            now = yield LOOK_S
        text = os.pread(output, MOST_BYTES, 0).decode(errors="replace")
        # A host reaps whatever child it finds ended: then only what was written tells.
        if info is not None and (info.ok or (info == LOST and "Thread" in text)):
            return now, text, ""
        problem = f"it ended with {info.summary}" if info is not None else "it did not come to an end"
        return now, "", f"{argv[0]} told nothing: {problem}\n{text}"
    finally:
        helpers.end(child)


def _find_py_spy(pid: int) -> str | None:
    """On this process' PATH, or beside its or the other's interpreter."""
    folders = [str(Path(program).parent) for program in (sys.executable, *_interpreters(pid)) if program]
    return shutil.which("py-spy", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))


def _interpreters(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        found.append(str(Path(f"{procfs.PROC}/{pid}/exe").readlink()))
    # A virtual environment's interpreter is a link that only the command line names.
    return found if _is_stuck(pid) else [*found, _first_argument(pid)]


def _first_argument(pid: int) -> str:
    """Absolute, else nothing."""
    try:
        name = os.fsdecode(Path(f"{procfs.PROC}/{pid}/cmdline").read_bytes().partition(b"\0")[0])
    except OSError:
        return ""
    return name if name.startswith("/") else ""


def _target(pid: int) -> list[str]:
    # A process that does not run cannot be stopped for the reading: py-spy would wait for that in vain.
    return ["--pid", str(pid), *(["--nonblocking"] if _is_stuck(pid) else [])]


def _is_stuck(pid: int) -> bool:
    found = procfs.read_stat(pid)
    return found is not None and found.state in ("D", "T", "t")


def _ask_itself(identity: ProcessIdentity, now: float) -> Steps[str]:
    try:
        sheet = open_sheet(identity.pid)
    except OSError:
        return ""
    if sheet is None:
        return ""
    with contextlib.closing(sheet):
        deadline = now + ANSWER_BOUND_S
        if not send_signal(identity, sheet.signum):
            return ""
        while now < deadline and not sheet.is_written():
            now = yield LOOK_S
        return sheet.read()


def _forbid_core(pid: int) -> None:
    # Late: only a kill needs it.
    import resource

    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
        # 1 and not 0: a core that is piped to a program knows only this value as "none".
        low = 1 if hard == resource.RLIM_INFINITY or hard >= 1 else 0
        resource.prlimit(pid, resource.RLIMIT_CORE, (low, hard))


@contextlib.contextmanager
def _opened_stderr(pid: int) -> Generator[int | None, None, None]:
    """Its stderr for reading if that is a file, `None` otherwise."""
    path, fd = f"{procfs.PROC}/{pid}/fd/2", None
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.stat(path).st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
