"""The first code of a function worker: own session, link to the agent, clean signals, log files, environment.

One file, standard library only. Processes made by `spawn` and `forkserver` run it by its path before they
import anything of the user's, forked ones call `begin`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Collection
from types import TracebackType
from typing import Any, BinaryIO, cast

PR_SET_PDEATHSIG = 1
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def begin(order: dict[str, Any]) -> None:
    """Become the worker that `order` describes, which `start.FunctionStart` makes."""
    fds = {name: _number(fd) for name, fd in order["fds"].items()}
    if os.getsid(0) != os.getpid():
        os.setsid()
    _die_with(order["parent"], fds["lifeline"])
    point_to_nothing(order["unwanted"])
    _reset_signals()
    if order["cpus"] is not None:
        os.sched_setaffinity(0, order["cpus"])
    _redirect(fds)
    _take_environment(order["env"] if "env" in order else _sent_environment(fds["memory"]))
    for name in ("memory", "channel", "lifeline"):
        if name in fds:
            os.set_inheritable(fds[name], False)
    sys.excepthook = _report_failed_start


def _number(fd: Any) -> int:
    # What `multiprocessing` sent is taken out of its wrapping; a forked process has the number itself.
    return fd if isinstance(fd, int) else int(fd.detach())


def _die_with(parent: int, lifeline: int) -> None:
    """Die with the thread that started this process, and its group with the process at the lifeline's end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # It may have died before the link was made.
    if parent and os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    # The kernel sends the signal when the last writer closes: no thread of ours waits for that.
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, int(signal.SIGKILL))  # type: ignore[attr-defined, unused-ignore]
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):
        os._exit(128 + signal.SIGKILL)


def point_to_nothing(unwanted: Collection[int]) -> None:
    """What a forked process must not keep. Closed numbers would be reused under the objects that own them."""
    if not unwanted:
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in unwanted:
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def _reset_signals() -> None:
    # A handler of its own that a forked process has would keep it from installing that again.
    faulthandler.disable()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in IGNORED_BY_PYTHON else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Unblocked last: what came since the start finds its default action.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect(fds: dict[str, int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for name, standard in (("stdout", 1), ("stderr", 2)):
        fd = fds.get(name)
        if fd is not None and fd != standard:
            os.dup2(fd, standard)
            os.close(fd)


def _sent_environment(memory: int) -> dict[str, str]:
    with open(memory, "rb", closefd=False) as file:
        file.seek(0)
        environment: dict[str, str] = json.loads(file.readline())
    return environment


def _take_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def renew_streams(redirected: tuple[bool, bool]) -> None:
    """Let `sys.stdout` and `sys.stderr` write to their descriptors, unbuffered if PYTHONUNBUFFERED says so.

    A process made by fork may have inherited objects that write elsewhere, and no variable that is set after
    Python has started changes its buffers.
    """
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for name, fd, moved in (("stdout", 1, redirected[0]), ("stderr", 2, redirected[1])):
        former = getattr(sys, f"__{name}__")
        if not (moved or (unbuffered and getattr(sys, name) is former)):
            continue
        raw = io.FileIO(fd, "w", closefd=False)
        stream = io.TextIOWrapper(
            # As Python does it: its type is not what the documentation promises.
            cast("BinaryIO", raw) if unbuffered else io.BufferedWriter(raw),
            encoding=getattr(former, "encoding", None) or "utf-8",
            errors="backslashreplace" if fd == 2 else getattr(former, "errors", None) or "strict",
            line_buffering=fd == 2,
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _report_failed_start(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Leave an error file for what goes wrong before the worker's own code is there to do it."""
    sys.excepthook = sys.__excepthook__
    sys.__excepthook__(kind, error, trace)
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    import traceback

    text = f"{kind.__name__}: {error} (while the main module was imported, before the function was called)"
    extra = {
        "py_callstack": "".join(traceback.format_exception(kind, error, trace)),
        "timestamp": str(int(time.time())),
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": {"message": text, "extraInfo": extra}}, file)


def start_over() -> None:
    """The worker's own code is there: errors are its business from here on."""
    # By name: this module may have been run as well as imported.
    if getattr(sys.excepthook, "__name__", "") == _report_failed_start.__name__:
        sys.excepthook = sys.__excepthook__


if "ORDER" in globals():
    begin(globals()["ORDER"])
    renew_streams(globals()["ORDER"]["redirected"])
