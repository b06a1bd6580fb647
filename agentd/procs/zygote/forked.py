"""A worker on its way: forked from the zygote and waiting as a blank, then a child that leads its session."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping

from agentd.procs import prctl, procfs
from agentd.procs.exits import ExitInfo, ExitWatch
from agentd.procs.identity import ProcessIdentity, send_signal
from agentd.procs.lifeline import Lifeline
from agentd.procs.spawn import SpawnError
from agentd.procs.waiter import Waiter
from agentd.procs.zygote.wire import ZygoteError, in_memory, receive, send
from agentd.quickdata import dataclass

BEGIN_TIMEOUT_S = 10.0
"""A blank that has not begun by then is given up."""


class BlankLost(Exception):
    """A blank has ended, or does not answer: the worker must be started in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a blank is to become."""

    argv: tuple[str, ...]
    """The whole command line."""
    arguments: tuple[str, ...]
    """The program's part of it."""
    env: Mapping[str, str]
    """All of its environment."""
    cwd: str | None
    cpus: frozenset[int] | None = None
    """Those it is bound to; `None`: its zygote's."""


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
        self.given = False
        """It is a worker now, and its crew's to reap."""
        waiter.add(connection, self._hear)

    @property
    def ready(self) -> bool:
        """Whether it waits for its order."""
        return self.identity is not None and not self.lost

    def begin(self, order: Order, stdout_fd: int | None, stderr_fd: int | None) -> ForkedChild:
        """Have it become a worker. Raises `BlankLost`, and `SpawnError` if its directory is not usable."""
        identity = self.identity
        if identity is None or self.lost:
            raise BlankLost("it was lost before its start")
        self._waiter.remove(self._connection)
        lifeline = Lifeline()
        try:
            self._order(
                order, lifeline, 1 if stdout_fd is None else stdout_fd, 2 if stderr_fd is None else stderr_fd
            )
            answer = self._answer()
            number = answer.get("errno")
            if isinstance(number, int):
                raise SpawnError(number, order.cwd or ".", f"as its directory: {os.strerror(number)}")
            if not answer.get("begun"):
                raise BlankLost("it gave no answer that is known here")
        except BaseException:
            lifeline.close()
            send_signal(identity, signal.SIGKILL)
            self.close()
            raise
        finally:
            os.close(lifeline.theirs)
        self._connection.close()
        self.given = True
        return ForkedChild(identity, lifeline)

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

    def _order(self, order: Order, lifeline: Lifeline, stdout_fd: int, stderr_fd: int) -> None:
        content = {
            "argv": order.argv,
            "arguments": order.arguments,
            "env": dict(order.env),
            "cwd": order.cwd,
            "cpus": None if order.cpus is None else sorted(order.cpus),
        }
        memory = in_memory(content)
        try:
            send(self._connection, {"op": "begin"}, (memory, lifeline.theirs, stdout_fd, stderr_fd))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS):
                raise
            raise BlankLost(f"it takes no order: {error.strerror}") from error
        finally:
            os.close(memory)

    def _answer(self) -> Mapping[str, object]:
        readable, _, _ = select.select([self._connection], [], [], BEGIN_TIMEOUT_S)
        try:
            answer = receive(self._connection) if readable else None
        except ZygoteError as error:
            raise BlankLost(str(error)) from error
        if answer is None:
            raise BlankLost("it ended" if readable else f"it did not begin within {BEGIN_TIMEOUT_S:g} s")
        return answer


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
