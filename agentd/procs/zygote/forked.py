"""A worker on its way: forked from the zygote and waiting as a blank, then a child that leads its session."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence

from agentd.procs import prctl, procfs
from agentd.procs.crew import Leader
from agentd.procs.exits import ExitInfo, ExitWatch
from agentd.procs.identity import ProcessIdentity, send_group_signal
from agentd.procs.lifeline import Lifeline
from agentd.procs.spawn import Order, SpawnError, spawn_all
from agentd.procs.waiter import Waiter
from agentd.procs.zygote.command import python_command
from agentd.procs.zygote.wire import ZygoteError, in_memory, receive, send

SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS})
BEGIN_TIMEOUT_S = 10.0
"""A blank that has not begun by then is given up."""
HEAD_START_S = 0.005
"""How long the others wait at most until the first has begun: forks are at their first line together, and a
rank that finds no store of rank 0 yet waits 250 to 750 ms before torch's TCPStore looks for it again."""


class BlankLost(Exception):
    """A blank has ended, or does not answer: the worker must be started in another way."""


class ForkedChild:
    """A child of this process that it did not fork itself. As `agentd.procs.spawn.Child`."""

    def __init__(self, identity: ProcessIdentity, lifeline: Lifeline) -> None:
        self.identity = identity
        self.lifeline = lifeline
        """What its process group lives by."""
        self.started_at = time.time()
        """Seconds since the epoch."""
        self._reaped = False

    @property
    def pid(self) -> int:
        """Its pid, and the id of its session and process group."""
        return self.identity.pid

    def signal_group(self, signum: int) -> None:
        """Signal its whole process group. Only while it is unreaped: until then the id is its own."""
        assert not self._reaped, "a reaped child's group id may belong to a stranger"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)

    def watch(self, waiter: Waiter, on_exit: Callable[[ExitInfo], object]) -> ExitWatch:
        """Have `on_exit` called from the waiter when it has ended. It is not reaped by that."""
        return ExitWatch(waiter, self.pid, on_exit)

    def reap(self) -> None:
        """Take its exit status, if it has ended; its pid is free afterwards."""
        if not self._reaped and _has_ended(self.pid):
            self._reaped = True
            self.lifeline.close()


class Blank:
    """A forked process that waits for its order. It lives in the `Waiter` until it has one, or is lost."""

    def __init__(self, waiter: Waiter, connection: socket.socket, changed: Callable[[Blank], object]) -> None:
        """`changed(self)` is called from the waiter once it is there, and when it is lost."""
        self._waiter = waiter
        self._connection = connection
        self._changed = changed
        self.identity: ProcessIdentity | None = None
        """Who it is, once it is a child of this process."""
        self.lost = False
        """It will never be there, or is gone."""
        self._lifeline: Lifeline | None = None
        self.given = False
        """It is a worker now, and its crew's to reap."""
        waiter.add(connection, self._hear)

    @property
    def ready(self) -> bool:
        """Whether it waits for its order."""
        return self.identity is not None and not self.lost

    def order(self, order: Order, arguments: Sequence[str], cpus: frozenset[int] | None = None) -> None:
        """Tell it what to become; `begun` comes next. Raises `BlankLost`, or `OSError` without descriptors.

        `arguments`: those of the command line that are the program's. `cpus`: those it is bound to.
        """
        if not self.ready:
            raise BlankLost("it was lost before its start")
        content = {
            "argv": order.argv,
            "arguments": arguments,
            "env": dict(order.env),
            "cwd": order.cwd,
            "cpus": None if cpus is None else sorted(cpus),
        }
        stdout_fd = 1 if order.stdout_fd is None else order.stdout_fd
        stderr_fd = 2 if order.stderr_fd is None else order.stderr_fd
        memory = in_memory(content)
        try:
            self._waiter.remove(self._connection)
            with Lifeline() as self._lifeline:
                fds = (memory, self._lifeline.theirs, stdout_fd, stderr_fd)
                send(self._connection, {"op": "begin"}, fds)
        except OSError as error:
            self.kill()
            if error.errno in SHORTAGE:
                raise
            raise BlankLost(f"it takes no order: {error.strerror}") from error
        finally:
            os.close(memory)

    def begun(self, order: Order) -> ForkedChild:
        """The worker it has become. Raises `BlankLost`, and `SpawnError` if its directory is not usable."""
        identity = self.identity
        assert identity is not None
        assert self._lifeline is not None, "it has its order"
        try:
            answer = self._answer()
            number = answer.get("errno")
            if isinstance(number, int):
                raise SpawnError(number, order.cwd or ".", f"as its directory: {os.strerror(number)}")
            if not answer.get("begun"):
                raise BlankLost("it gave no answer that is known here")
        except BaseException:
            self.kill()
            raise
        self._connection.close()
        self.given = True
        return ForkedChild(identity, self._lifeline)

    def answers_within(self, limit_s: float) -> bool:
        """Wait so long for what it says to its order."""
        return bool(select.select([self._connection], [], [], limit_s)[0])

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.given or self.lost:
            return
        if self.identity is not None:
            send_group_signal(self.identity, signal.SIGKILL)
        if self._lifeline is not None:
            self._lifeline.close()
        self.close()

    def close(self) -> None:
        """Want it no longer: it ends."""
        if not (self.lost or self.given):
            self.lost = True
            self._waiter.remove(self._connection)
            self._connection.close()

    def reaped(self) -> bool:
        """Whether nothing of it is left here to reap; it is reaped if it has ended."""
        return self.given or self.identity is None or _has_ended(self.identity.pid)

    def _hear(self) -> None:
        try:
            message = receive(self._connection)
        except BlockingIOError:
            return
        except ZygoteError:
            message = None
        pid = None if message is None else message.get("pid")
        if type(pid) is int and self.identity is None:
            stat = procfs.read_stat(pid)
            if stat is not None and stat.parent == os.getpid():
                self.identity = ProcessIdentity(pid, stat.start_time)
                self._changed(self)
                return
        self.close()
        self._changed(self)

    def _answer(self) -> Mapping[str, object]:
        readable = self.answers_within(BEGIN_TIMEOUT_S)
        try:
            answer = receive(self._connection) if readable else None
        except ZygoteError as error:
            raise BlankLost(str(error)) from error
        if answer is None:
            raise BlankLost("it ended" if readable else f"it did not begin within {BEGIN_TIMEOUT_S:g} s")
        return answer


def start_all(
    blanks: list[Blank], orders: Sequence[tuple[Order, frozenset[int] | None]]
) -> Generator[Leader, None, None]:
    """Start several, each from one of the blanks while there are any, and give them in their order.

    As `spawn_all`, which starts those for whom there is no blank, or one that was lost just now.
    """
    begun: list[tuple[Order, Blank | None]] = []
    try:
        for order, cpus in orders:
            if len(begun) == 1 and (first := begun[0][1]) is not None:
                first.answers_within(HEAD_START_S)
            begun.append((order, _ordered(blanks, order, cpus)))
        for order, blank in begun:
            yield _started(order, blank)
    finally:
        for _, blank in begun:
            if blank is not None:
                blank.kill()


def _ordered(blanks: list[Blank], order: Order, cpus: frozenset[int] | None) -> Blank | None:
    arguments = python_command(order.argv).arguments
    while blanks:
        blank = blanks.pop(0)
        with contextlib.suppress(BlankLost):
            blank.order(order, arguments, cpus)
            return blank
    return None


def _started(order: Order, blank: Blank | None) -> Leader:
    if blank is not None:
        with contextlib.suppress(BlankLost):
            return blank.begun(order)
    (child,) = spawn_all([order])
    return child


class Adoption:
    """While somebody waits for blanks this process adopts what its descendants leave behind."""

    def __init__(self) -> None:
        self._waiting = 0
        self._former = True

    def add(self, count: int) -> None:
        """So many more are awaited; negative: fewer."""
        if not self._waiting and count > 0:
            self._former = prctl.is_subreaper()
            if not self._former:
                prctl.become_subreaper()
        self._waiting += count
        if not self._waiting and not self._former:
            prctl.become_subreaper(False)


def _has_ended(pid: int) -> bool:
    """Reap it if it has; whoever was reaped by another part of the program has ended, too."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
