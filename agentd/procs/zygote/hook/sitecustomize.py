# ruff: noqa: INP001, PTH100, PTH115, PTH120, SIM105
"""The zygote: an interpreter that has imported some modules, and is forked into workers at their first line.

One file, standard library only, Python 3.8 or newer; it runs on the user's interpreter, which needs no
agentd. Its parent is `agentd.procs.zygote.process`, its wire is described there.

It is found as `sitecustomize`, which an interpreter imports last of all before it runs what its command line
names. The zygote never comes back from that import; its forks do, into the interpreter's own code, which then
runs script, module or command as it always does, with nothing of this file on the stack. Before that the
interpreter is started once with this file as its script: only if the hook runs then, the command itself is
put in its place, so that no interpreter without the hook ever runs a worker's program.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

MARK = "AGENTD_ZYGOTE"
VERSION = 1
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_MM, PR_SET_MM_MAP = 1, 15, 35, 14
COMM = b"agentd-zygote"
ADOPTION_S = 10.0
LONGEST_TEXT = 4096
MOST_FDS = 253
ABOVE_SCRIPTS = 10
ACCELERATORS = ("/dev/nvidia", "/dev/kfd", "/dev/accel", "/dev/davinci", "/dev/habanalabs")
SIZE = 256
"""Of the matrices of the trial: large enough for a BLAS library to use its pool of threads."""


class Link:
    """The socket to the parent: one JSON object each, some with descriptors."""

    def __init__(self, fd: int) -> None:
        import socket

        self.socket = socket.socket(fileno=fd)

    def send(self, **message: object) -> None:
        self.socket.send(json.dumps({"v": VERSION, **message}).encode())

    def receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        """The next message and its descriptors; `None` when the parent has hung up."""
        import array
        import socket

        fds = array.array("i")
        data, parts, _flags, _sender = self.socket.recvmsg(65536, socket.CMSG_SPACE(MOST_FDS * fds.itemsize))
        for level, kind, body in parts:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
        return (json.loads(data) if data else None), list(fds)

    def close(self) -> None:
        self.socket.close()


def prctl(option: int, value: int | bytes) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# --- as the zygote ------------------------------------------------------------------------------------------


class Zygote:
    """Imports, judges itself, forks. What it remembers of its beginning its workers get back."""

    def __init__(self, link: Link, lifeline: int, order: dict[str, Any]) -> None:
        self.link = link
        self.lifeline = lifeline
        self.order = order
        self.comm = _read("/proc/self/comm").rstrip(b"\n")
        self.mask: set[int] = set()
        """Of signals that were blocked when workers were forked."""
        self.env = dict(os.environ)
        self.customized: Exception | None = None
        """What the user's own sitecustomize raised."""
        self.changed: dict[str, str | None] = {}
        """Variables as the imports left them, `None` for those that they removed."""
        prctl(PR_SET_NAME, COMM)

    def prepare(self) -> str:
        """Import all; the answer is why no worker may be forked here, empty if they may."""
        self.customize()
        problem = self.import_all()
        now = dict(os.environ)
        names = [name for name in {**self.env, **now} if self.env.get(name) != now.get(name)]
        self.changed = {name: now.get(name) for name in names}
        if problem:
            return problem
        import gc

        gc.collect()
        return unsafe() or trial(self.order["trial_limit_s"])

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
        between = fork()
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


def reap(child: int) -> None:
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass  # an imported module has said that children are not waited for


def multiply() -> None:
    modules: dict[str, Any] = sys.modules
    numpy, torch = modules.get("numpy"), modules.get("torch")
    if numpy is not None and hasattr(numpy, "ones"):
        numpy.ones((SIZE, SIZE)) @ numpy.ones((SIZE, SIZE))
    if torch is not None and hasattr(torch, "ones"):
        torch.ones(SIZE, SIZE) @ torch.ones(SIZE, SIZE)


def fork() -> int:
    if tuple(sys.version_info) < (3, 12):
        return os.fork()
    import warnings

    # It counts threads that BLAS libraries know how to fork; what must not be forked was looked for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# --- as a worker --------------------------------------------------------------------------------------------


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
        if order["cwd"] is not None:
            os.chdir(order["cwd"])
    except OSError as error:
        link.send(errno=error.errno)
        os._exit(127)
    take_environment(zygote, order["env"])
    sys.argv[1:] = order["arguments"]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = order["argv"]
    prctl(PR_SET_NAME, zygote.comm)
    show_outside(order["env"], order["argv"] if order["argv"] != zygote.order["argv"] else [])
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


def hang_up_ends_group(lifeline: int) -> None:
    """As `agentd.procs.lifeline` does it."""
    import fcntl
    import signal

    fcntl.fcntl(lifeline, fcntl.F_SETSIG, int(signal.SIGKILL))
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def redirect(out: int, err: int) -> None:
    """Let both streams write to their files; the objects stay, as imported modules may hold them."""
    flush()
    for fd, standard, name in ((out, 1, "stdout"), (err, 2, "stderr")):
        former = _kind(standard)
        os.dup2(fd, standard)
        os.close(fd)
        if _kind(standard) != former and getattr(sys, name) is getattr(sys, f"__{name}__"):
            renew_stream(standard, name)


def renew_stream(fd: int, name: str) -> None:
    """The stream as the interpreter makes it: it depends on the kind of file."""
    import io

    former: Any = getattr(sys, name)
    unbuffered = former.write_through
    raw: Any = open(fd, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    (raw if unbuffered else raw.raw).name = f"<{name}>"
    stream: Any = io.TextIOWrapper(
        raw,
        former.encoding,
        former.errors,
        "\n",
        line_buffering=not unbuffered and (raw.isatty() or fd == 2),
        write_through=unbuffered,
    )
    stream.mode = "w"
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


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


def show_outside(environment: dict[str, str], argv: list[str]) -> None:
    """Have /proc/PID/environ, and cmdline if there is an `argv`, show what is the worker's, where one may."""
    import array
    import ctypes

    libc: Any = ctypes.CDLL(None)
    shown = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    words = b"".join(os.fsencode(word) + b"\0" for word in argv)
    libc.mmap.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    # Never given back: the kernel reads there for as long as the process lives.
    start = libc.mmap(None, len(shown + words) + 1, 3, 0x22, -1, 0)
    if start in (None, ctypes.c_void_p(-1).value):
        return
    ctypes.memmove(start, shown + words, len(shown + words))
    fields = [0, 0, *map(int, _read("/proc/self/stat").rpartition(b") ")[2].split()[1:])]
    places = [fields[number - 2] for number in (26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51) if number]
    places.insert(5, libc.sbrk(0))
    places[9:11] = start, start + len(shown)
    if words:
        places[7:9] = start + len(shown), start + len(shown + words)
    known = array.array("Q", [*places, 0]).tobytes() + array.array("I", [0, 0xFFFFFFFF]).tobytes()
    libc.prctl(PR_SET_MM, PR_SET_MM_MAP, known, ctypes.c_ulong(len(known)), 0)


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


# --- both ---------------------------------------------------------------------------------------------------


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001 - a module may have put anything there
            pass


def close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _open_fds() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _kind(fd: int) -> tuple[int, bool]:
    import stat

    return stat.S_IFMT(os.fstat(fd).st_mode), os.isatty(fd)


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


def enter(fd: int, memory: int, lifeline: int, stage: str) -> Exception | None:
    """Be the zygote. Comes back in workers only, with the exception that `site` is to see, if any."""
    order = json.loads(os.pread(memory, os.fstat(memory).st_size, 0))
    if stage == "prove":
        os.environ[MARK] = f"{fd}:{memory}:{lifeline}:live"
        prove(order, lifeline)
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    sys.path_importer_cache.pop(folder, None)
    os.environ.pop("PYTHONPATH", None)
    if order["pythonpath"] is not None:
        os.environ["PYTHONPATH"] = order["pythonpath"]
    os.close(memory)
    for inherited in (fd, lifeline):
        os.set_inheritable(inherited, False)
    zygote = Zygote(Link(fd), lifeline, order)
    problem = zygote.prepare()
    if problem:
        zygote.link.send(op="failed", problem=problem[:LONGEST_TEXT])
        os._exit(1)
    zygote.link.send(op="ready")
    become_worker(zygote, zygote.serve())
    return zygote.customized


def run() -> None:
    fd, memory, lifeline, stage = os.environ.pop(MARK).split(":")
    try:
        error = enter(int(fd), int(memory), int(lifeline), stage)
    except BaseException:  # noqa: BLE001 - whatever it is, the program must not run in the wrong process
        try:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(70)
    if error is not None:
        raise error


if __name__ == "__main__":
    # The first start, with this file as its script: the interpreter has not imported it before.
    Link(int(os.environ[MARK].split(":")[0])).send(
        op="failed", problem="the interpreter imports no sitecustomize from PYTHONPATH"
    )
    sys.exit(70)

if MARK in os.environ:
    run()
else:
    raise ImportError("only a zygote wants this file", name="sitecustomize")
