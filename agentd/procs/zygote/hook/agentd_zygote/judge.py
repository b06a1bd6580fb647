# ruff: noqa: PTH115
"""Whether a process can be forked into workers, judged by what was found in it and by one fork."""

from __future__ import annotations

import os
import sys

from agentd_zygote.system import flush, fork, reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ACCELERATORS = ("/dev/nvidia", "/dev/kfd", "/dev/accel", "/dev/davinci", "/dev/habanalabs")
SIZE = 256
"""Of the matrices of the trial: large enough for a BLAS library to use its pool of threads."""


def unsafe() -> str:
    """Why this process must not be forked into workers, as far as it can be seen; empty if nothing is."""
    if len(sys._current_frames()) > 1:
        threading = sys.modules.get("threading")
        names = [thread.name for thread in threading.enumerate()[1:]] if threading else []
        return f"the imports left threads running: {', '.join(names) or 'nameless ones'}"
    for name in ("cuda", "xpu", "mtia", "npu", "hpu"):
        is_initialized = getattr(sys.modules.get(f"torch.{name}"), "is_initialized", None)
        if callable(is_initialized) and is_initialized():
            return f"the imports initialized torch.{name}, which no fork can use"
    for fd in _open_fds():
        target = _target(fd)
        if target.startswith(ACCELERATORS):
            return f"the imports opened the accelerator {target}, which no fork can use"
    return ""


def trial(limit_s: float) -> str:
    """Why a fork of this process cannot compute; empty if it can."""
    import select
    import signal

    flush()
    result, told = os.pipe()
    child = fork()
    if not child:
        try:
            multiply()
            os.write(told, b"1")
        except BaseException:  # noqa: BLE001 - whatever it is, this fork must not go on
            import traceback

            traceback.print_exc()
            flush()
        os._exit(0)
    os.close(told)
    ended = bool(select.select([result], [], [], limit_s)[0])
    computed = ended and os.read(result, 1) == b"1"
    os.close(result)
    if not ended:
        os.kill(child, signal.SIGKILL)
    reap(child)
    if computed:
        return ""
    how = "failed at a matrix product" if ended else f"hung for {limit_s:g} s at a matrix product"
    return f"a trial fork {how}"


def multiply() -> None:
    modules: dict[str, Any] = sys.modules
    numpy, torch = modules.get("numpy"), modules.get("torch")
    if numpy is not None and hasattr(numpy, "ones"):
        numpy.ones((SIZE, SIZE)) @ numpy.ones((SIZE, SIZE))
    if torch is not None and hasattr(torch, "ones"):
        torch.ones(SIZE, SIZE) @ torch.ones(SIZE, SIZE)


def _open_fds() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
