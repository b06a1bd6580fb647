"""`--standalone`: an agentd for one run, started and ended with this process.

It has a session of its own, so that Ctrl-C reaches agentctl only, and holds the read end of a pipe whose
write end is ours alone: however this process ends, kill -9 included, agentd sees it, stops its workers and
ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from agentctl import caller
from agentctl.exits import CommandFailed, ExitCode
from agentd.quickdata import dataclass

KEPT: Final = 10
"""State directories that stay for a look at their logs; older ones are removed."""
START_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 10.0
LONGEST_SOCKET_PATH: Final = 100
_LOCK: Final = "in-use.lock"
_SOCKET_DIR: Final = "socket-dir"
_LOG: Final = "agentd.log"
_TAIL_LINES: Final = 15
_LEAST_ROOM: Final = 1 << 20
_LEAST_FILES: Final = 16
"""What an agentd needs to begin, and some."""


class StandaloneFailed(CommandFailed):
    """The embedded agentd did not come up; says why in a sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, ExitCode.UNREACHABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standalone:
    """A running embedded agentd."""

    target: str
    pid: int
    state_dir: Path


@contextlib.contextmanager
def standalone(
    environ: Mapping[str, str] = caller.ENVIRON, *, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[Standalone]:
    """An agentd of this user on this machine for the length of the block. `meanwhile`: done as it starts."""
    state_dir, lock = _make_state_dir(environ)
    try:
        _remove_old(state_dir.parent)
        with _process(state_dir, lock, environ, meanwhile) as (process, target):
            yield Standalone(target=target, pid=process.pid, state_dir=state_dir)
    finally:
        _remove_socket_dir(state_dir)
        os.close(lock)


def state_root(environ: Mapping[str, str]) -> Path:
    """Where the state directories of embedded agentds are."""
    state_home = environ.get("XDG_STATE_HOME") or str(
        Path(environ.get("HOME") or "~").expanduser() / ".local/state"
    )
    return Path(state_home) / "agentd-standalone"


def _make_state_dir(environ: Mapping[str, str]) -> tuple[Path, int]:
    """A fresh directory, and the lock that says it is in use."""
    root = state_root(environ)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        state_dir = Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=root))
        lock = os.open(state_dir / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StandaloneFailed(f"no state directory can be made in {root}: {error.strerror}") from None
    fcntl.flock(lock, fcntl.LOCK_EX)
    return state_dir, lock


def _remove_old(root: Path) -> None:
    """Remove all but the newest directories, and none that a living agentd uses."""
    with contextlib.suppress(OSError):
        folders = sorted((path for path in root.iterdir() if path.is_dir()), reverse=True)
        for folder in folders[KEPT:]:
            if not _is_in_use(folder):
                _remove(folder)


def _is_in_use(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    _remove_socket_dir(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_socket_dir(state_dir: Path) -> None:
    """Where the socket had to be elsewhere. After a kill -9 this waits until the state itself is old."""
    note = state_dir / _SOCKET_DIR
    with contextlib.suppress(OSError):
        shutil.rmtree(note.read_text(), ignore_errors=True)
        note.unlink()


@contextlib.contextmanager
def _process(
    state_dir: Path, lock: int, environ: Mapping[str, str], meanwhile: Callable[[], object]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with _named(state_dir):
        target = f"unix:{_socket_path(state_dir)}"
    lifeline_read, lifeline_write = os.pipe()
    ready_read, ready_write = os.pipe()
    descriptors = ("--lifeline-fd", str(lifeline_read), "--ready-fd", str(ready_write))
    flags = ("--listen", target, "--host-mode", "stop", *descriptors)
    try:
        # The lock goes along: the directory is in use until both of us are gone.
        with _named(state_dir):
            process = _spawn(state_dir, flags, (lifeline_read, ready_write, lock), environ)
        os.close(ready_write)
        os.close(lifeline_read)
        ready_write = lifeline_read = -1
        try:
            meanwhile()
            _await_ready(ready_read, state_dir)
            yield process, target
        finally:
            os.close(lifeline_write)
            lifeline_write = -1
            _await_end(process)
    finally:
        for fd in (lifeline_read, lifeline_write, ready_read, ready_write):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def _named(state_dir: Path) -> Iterator[None]:
    """What the system refuses is told in a sentence."""
    try:
        yield
    except OSError as error:
        problem = f"the embedded agentd cannot be started in {state_dir}: {error.strerror}"
        raise StandaloneFailed(problem) from None


def _spawn(
    state_dir: Path, flags: Iterable[str], fds: Iterable[int], environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with (state_dir / _LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "agentd", "--state-dir", str(state_dir), *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=tuple(fds),
            start_new_session=True,
            # A folder called agentd in the user's directory must not be taken for the program.
            cwd=state_dir,
            env={name: value for name, value in environ.items() if not name.startswith("AGENTD_")},
        )


def _socket_path(state_dir: Path) -> Path:
    """In the state directory, or in a short place where that is too deep for a socket."""
    path = state_dir / "agentd.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    folder = tempfile.mkdtemp(prefix="agentd-", dir="/tmp")
    (state_dir / _SOCKET_DIR).write_text(folder)
    return Path(folder) / "agentd.sock"


def _await_ready(ready_fd: int, state_dir: Path) -> None:
    """Until it serves; its end or its silence is told with the end of its log."""
    deadline, line = time.monotonic() + START_TIMEOUT_S, b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([ready_fd], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(ready_fd, 4096) if readable else b""
        if not piece:
            problem = f"it did not serve within {START_TIMEOUT_S:g} s" if not readable else "it ended at once"
            raise StandaloneFailed(f"the embedded agentd did not come up: {problem}.\n{_why(state_dir)}")
        line += piece
    json.loads(line)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """It shuts down when the lifeline is cut; one that still stops workers is left to do so."""
    # One that was stopped by a signal would never see it, nor would its workers end.
    process.send_signal(signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)


def _why(state_dir: Path) -> str:
    """The end of its log, which lacks just what its disk did not take."""
    path, lines = state_dir / _LOG, []
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    told = f"Its log, {path}, ends with:" if lines else f"Its log, {path}, is empty."
    return "\n".join([told, *(f"  | {line}" for line in lines), *_shortages(state_dir)])


def _shortages(state_dir: Path) -> Iterator[str]:
    """What the disk there has run out of, and the next step."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(state_dir)
        lacks_room = disk.f_bavail * disk.f_frsize < _LEAST_ROOM
        if lacks_room or (disk.f_files and disk.f_favail < _LEAST_FILES):
            problem = "is full" if lacks_room else "takes no more files"
            yield f"The disk of {state_dir} {problem}. Free space there, or name another by XDG_STATE_HOME."
