"""What function workers run in tests. A module of its own: the workers import it anew."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEGABYTE = 1 << 20


def product(left: int, right: int) -> int:
    print("out", os.environ["NAME"])
    print("err", os.environ["NAME"], file=sys.stderr)
    return left * right


def size_of(data: bytes) -> int:
    return len(data)


def big(megabytes: int) -> bytes:
    return b"x" * (megabytes * MEGABYTE)


def surroundings() -> dict[str, Any]:
    """What a worker sees of the process it is."""
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "ids": (os.getpid(), os.getsid(0), os.getpgrp()),
        "stdin": fds[0],
        "fds": fds,
        "blocked": int(next(line for line in status if line.startswith("SigBlk")).split()[1], 16),
        "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "sigusr2": signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL,
        "wakeup": signal.set_wakeup_fd(-1),
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "threads": threading.active_count(),
        "cpus": os.sched_getaffinity(0),
    }


def lambda_returner() -> Callable[[], None]:
    return lambda: None


def strange_value() -> object:
    """An object whose class exists in the worker's process alone."""
    strange = type("OnlyHere", (), {"__module__": __name__})
    globals()["OnlyHere"] = strange
    return strange()


class Picky:
    """Cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise LookupError("not in this process")


def leave(how: str, status: Any = None) -> None:
    """End in some way."""
    if how == "os._exit":
        os._exit(status)
    elif how == "sys.exit":
        sys.exit(status)
    elif how == "raise":
        raise ArithmeticError(f"asked to raise {status}")
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "signal":
        os.kill(os.getpid(), status)
        time.sleep(1000)
    elif how == "fault":
        ctypes.string_at(0)


def one_fails(rank: int, folder: str) -> None:
    """Rank 0 fails once the others are up; they would run for ever."""
    if rank:
        Path(folder, f"up{rank}").touch()
        time.sleep(1000)
    while len(list(Path(folder).glob("up*"))) < 2:
        time.sleep(0.005)
    raise RuntimeError("the first")


def ignore_sigterm(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(folder, "up").touch()
    time.sleep(1000)


def sleep_with_grandchild(folder: str) -> None:
    """A grandchild by fork in this session, one by fork of `multiprocessing`, then sleep."""
    if os.fork() == 0:
        Path(folder, "forked").write_text(str(os.getpid()))
        time.sleep(1000)
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    process.start()
    Path(folder, "up").touch()
    time.sleep(1000)


def sleep_beside_grandchild(folder: str, name: str) -> None:
    """A grandchild that keeps nothing of this process open, then sleep."""
    subprocess.Popen(["sleep", "1000"], close_fds=True)
    sleep(folder, name)


def leave_grandchild() -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
    return pid


def sleep(folder: str, name: str = "up") -> None:
    Path(folder, name).touch()
    time.sleep(1000)


def close_stdout() -> str:
    print("before")
    sys.stdout.flush()
    os.close(1)
    return "done"


def print_garbage() -> None:
    os.write(1, b"\xff\xfe not utf-8 \x80\n")
    sys.stderr.buffer.write(b"\xc3\x28\n")
    sys.stderr.flush()


def print_without_newline(megabytes: int) -> None:
    for _ in range(megabytes):
        sys.stdout.write("x" * MEGABYTE)


def put_into(queue: Any, value: Any) -> str:
    queue.put(value)
    queue.close()
    queue.join_thread()
    return "put"


def unbuffered_then_killed() -> None:
    sys.stdout.write("no newline, no flush")
    os.kill(os.getpid(), signal.SIGKILL)


def ignore_or_fail(folder: str) -> None:
    """Rank 1 ignores SIGTERM; rank 0 fails once it does."""
    if os.environ["LOCAL_RANK"] == "1":
        ignore_sigterm(folder)
    while not Path(folder, "up").exists():
        time.sleep(0.005)
    sys.exit(5)


def hang_in_timer() -> None:
    """A step that takes longer than it may."""
    from agentd.elastic import timer

    timer.configure(timer.FileTimerClient(os.environ["TORCHELASTIC_TIMER_FILE"]))
    with timer.expires(after=0.3, scope="step 7"):
        time.sleep(1000)
