"""Imports, is judged, and forks on demand. Its parent is `agentd.procs.zygote.process`."""

from __future__ import annotations

import os
import sys

from agentd_zygote.judge import trial, unsafe
from agentd_zygote.link import Link
from agentd_zygote.system import PR_SET_NAME, PR_SET_PDEATHSIG, close, cwd, flush, fork, prctl, read, reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COMM = b"agentd-zygote"
LONGEST_TEXT = 4096
ADOPTION_S = 10.0


class Zygote:
    """Imports, judges itself, forks. What it remembers of its beginning its workers get back."""

    def __init__(self, link: Link, lifeline: int, order: dict[str, Any]) -> None:
        self.link = link
        self.lifeline = lifeline
        self.order = order
        self.pid = os.getpid()
        self.cwd = cwd()
        self.moved = False
        """Whether the imports changed the directory: workers stay there."""
        self.comm = read("/proc/self/comm").rstrip(b"\n")
        self.mask: set[int] = set()
        """Of signals that were blocked when workers were forked."""
        self.env = dict(os.environ)
        self.customized: Exception | None = None
        """What the user's own sitecustomize raised."""
        self.changed: dict[str, str | None] = {}
        """Variables as the imports left them, `None` for those that they removed."""
        prctl(PR_SET_NAME, COMM)

    def prepare(self) -> bool:
        """Import all, and tell the parent whether workers may be forked here, or why not."""
        self.customize()
        problem = self.import_all()
        now = dict(os.environ)
        names = [name for name in {**self.env, **now} if self.env.get(name) != now.get(name)]
        self.changed = {name: now.get(name) for name in names}
        self.moved = cwd() != self.cwd
        if "faulthandler" in sys.modules:
            # A fork would wait for its thread, which no fork has, when it ends.
            sys.modules["faulthandler"].cancel_dump_traceback_later()
        if not problem:
            import gc

            gc.collect()
            problem = unsafe() or trial(self.order["trial_limit_s"])
        if problem:
            self.link.send(op="failed", problem=problem[:LONGEST_TEXT])
        else:
            self.link.send(op="ready")
        return not problem

    def customize(self) -> None:
        """What the interpreter would have found without this file."""
        del sys.modules["sitecustomize"]
        try:
            import sitecustomize  # type: ignore[import-not-found, unused-ignore] # noqa: F401
        except Exception as error:  # noqa: BLE001 - each worker's interpreter is to tell of it, as ever
            self.customized = error

    def import_all(self) -> str:
        """Import in the surroundings that the program will have: its folder first, its file known."""
        main, folder = sys.modules["__main__"], self.order["path0"]
        if folder is not None:
            sys.path.insert(0, folder)
        if self.order["file"]:
            main.__file__ = self.order["file"]
        try:
            for name in self.order["modules"]:
                try:
                    __import__(name)
                except BaseException as error:  # noqa: BLE001 - also one that calls sys.exit
                    import traceback

                    traceback.print_exc()
                    return f"import {name}: {type(error).__name__}: {error}"
                if os.getpid() != self.pid:
                    return f"import {name} forked, and the fork went on as if it were the zygote"
        finally:
            if folder in sys.path:
                sys.path.remove(folder)
            main.__dict__.pop("__file__", None)
        return ""

    def serve(self) -> int:
        """Fork on demand until the parent hangs up. Comes back in the forks only, with their socket."""
        while True:
            request, fds = self.link.receive()
            if request is None:
                os._exit(0)
            problem = unsafe() if request.get("op") == "fork" else "this request is not known here"
            if problem:
                self.link.send(op="refused", problem=problem[:LONGEST_TEXT])
                close(fds)
                continue
            fd = self.fork_blanks(fds)
            if fd >= 0:
                return fd

    def fork_blanks(self, fds: list[int]) -> int:
        """A blank for each socket, all children of one process that ends at once; -1 in the zygote."""
        import signal

        flush()
        self.mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG}))
        try:
            between = fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            self.link.send(op="refused", problem=f"it cannot fork: {error}")
            close(fds)
            return -1
        if between:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            close(fds)
            reap(between)
            return -1
        try:
            between = os.getpid()
            for fd in fds:
                if fork() == 0:
                    close(other for other in fds if other != fd)
                    self.link.close()
                    os.close(self.lifeline)
                    await_adoption(between, self.order["parent"])
                    return fd
        except OSError:
            pass  # the sockets without a blank hang up: that is how the parent learns it
        os._exit(0)


def await_adoption(between: int, parent: int) -> None:
    """Return as a child of `parent` that dies with it. `between` is the parent until it ends."""
    import signal

    # The end of a parent can be waited for as a signal, blocked since before the fork.
    prctl(PR_SET_PDEATHSIG, int(signal.SIGURG))
    if os.getppid() == between:
        signal.sigtimedwait([signal.SIGURG], ADOPTION_S)
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    while signal.sigtimedwait([signal.SIGURG], 0):
        pass
