# ruff: noqa: PTH100, PTH120
"""The two starts of a zygote: the first one proves the hook, the second is the command line itself."""

from __future__ import annotations

import json
import os
import sys

from agentd_zygote.system import PR_SET_PDEATHSIG, hang_up_ends_group, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(mark: str) -> None:
    """Go by what `mark` of the environment says. Returns in workers only, or raises what `site` is to see."""
    inherited, stage = os.environ.pop(mark).rsplit(":", 1)
    fd, memory, lifeline = map(int, inherited.split(":"))
    try:
        order = json.loads(os.pread(memory, os.fstat(memory).st_size, 0))
        if stage == "prove":
            os.environ[mark] = inherited + ":live"
            prove(order, lifeline)
        os.close(memory)
        error = live(fd, lifeline, order)
    except BaseException:  # noqa: BLE001 - whatever it is, the program must not run in the wrong process
        try:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(70)
    if error is not None:
        raise error


def prove(order: dict[str, Any], lifeline: int) -> None:
    """This interpreter runs the hook: put the command in its place. It ends with the parent."""
    import signal

    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != order["parent"]:
        os._exit(128 + signal.SIGKILL)
    hang_up_ends_group(lifeline)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(order["program"], order["argv"])


def live(fd: int, lifeline: int, order: dict[str, Any]) -> Exception | None:
    """Be the zygote. Comes back in workers only, with the exception that `site` is to see, if any."""
    from agentd_zygote.link import Link
    from agentd_zygote.worker import become_worker
    from agentd_zygote.zygote import Zygote

    leave_no_trace(order["pythonpath"])
    for inherited in (fd, lifeline):
        os.set_inheritable(inherited, False)
    zygote = Zygote(Link(fd), lifeline, order)
    if zygote.prepare():
        become_worker(zygote, zygote.serve())
        return zygote.customized
    os._exit(1)


def leave_no_trace(pythonpath: str | None) -> None:
    """Have this interpreter as it would be without the hook, of which all is loaded by now."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "agentd_zygote"]:
        del sys.modules[name]
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    for place in (folder, os.path.join(folder, "agentd_zygote")):
        sys.path_importer_cache.pop(place, None)
    os.environ.pop("PYTHONPATH", None)
    if pythonpath is not None:
        os.environ["PYTHONPATH"] = pythonpath
