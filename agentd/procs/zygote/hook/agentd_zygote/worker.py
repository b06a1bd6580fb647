"""A fork becomes the worker that its order describes, as if it had just been started."""

from __future__ import annotations

import json
import os
import sys

from agentd_zygote.link import Link
from agentd_zygote.outside import show_outside
from agentd_zygote.streams import redirect
from agentd_zygote.system import PR_SET_NAME, hang_up_ends_group, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentd_zygote.zygote import Zygote

ABOVE_SCRIPTS = 10


def become_worker(zygote: Zygote, fd: int) -> None:
    """Tell the parent who this is, wait for its order, and be the worker that it describes."""
    import signal

    link = Link(fd)
    link.send(pid=os.getpid())
    told, fds = link.receive()
    if told is None:
        os._exit(0)
    memory, lifeline, out, err = fds
    with open(memory, "rb") as file:
        order = json.loads(file.read())
    os.setsid()
    tie(lifeline)
    redirect(out, err)
    if order["cpus"] is not None:
        os.sched_setaffinity(0, order["cpus"])
    try:
        if order["cwd"] is not None and not zygote.moved:
            os.chdir(order["cwd"])
    except OSError as error:
        link.send(errno=error.errno)
        os._exit(127)
    take_environment(zygote, order["env"])
    sys.argv[1:] = order["arguments"]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = order["argv"]
    show_outside(order["env"], order["argv"] if order["argv"] != zygote.order["argv"] else [])
    # Last: a process that is not called a zygote shows whose worker it is.
    prctl(PR_SET_NAME, zygote.comm)
    renew_what_fork_keeps()
    signal.pthread_sigmask(signal.SIG_SETMASK, zygote.mask)
    link.send(begun=True)
    link.close()


def tie(lifeline: int) -> None:
    """Have the kernel end this process group when the parent's end is gone."""
    import fcntl

    held = fcntl.fcntl(lifeline, fcntl.F_DUPFD, ABOVE_SCRIPTS)
    os.close(lifeline)
    hang_up_ends_group(held)


def take_environment(zygote: Zygote, environment: dict[str, str]) -> None:
    """All of the worker's own, and what the imports did to variables that it shares with the zygote."""
    for name, value in zygote.changed.items():
        if environment.get(name) == zygote.env.get(name):
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
    for name in [name for name in os.environ if name not in environment]:
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def renew_what_fork_keeps() -> None:
    """What a process draws from the system at its start; `random` sees to itself."""
    modules: dict[str, Any] = sys.modules
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    if "threading" in modules:
        main = modules["threading"].main_thread()
        # Python forgets it.
        getattr(main, "_set_native_id", int)()
