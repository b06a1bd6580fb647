"""A host that is ready before it is wanted: it has imported all, and waits to be told whose host it is.

It is started as any host is, and once it is told /proc shows it as one that was started for its group: it is
found, adopted and swept like one. Untold, it ends with the agentd that has it in stock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from agentd.procs import appearance
from agentd.procs.spawn import Child, spawn
from agentd.procs.tree import TOKEN_VARIABLE
from agentd.quickdata import dataclass

IN_STOCK: Final = "--in-stock"
NO_TOKEN: Final = "0" * 32
"""Stands in its environment for the token that it will have."""

END_S: Final = 1.0
"""What SIGKILL has to end it; a process that hangs in the kernel is left to it."""

_PAUSE_S: Final = 0.002
_ROOM: Final = "." * 4096
"""Where its arguments will be shown."""
_READY: Final = b"ready"
_LARGEST: Final = 64 * 1024


class HostStock:
    """One host at most, for an agentd. Any thread may call."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        """How a host is started, without what makes it one group's."""
        self._argv = argv
        self._env = env
        self._cwd = cwd
        self._lock = threading.Lock()  # never held while a process is started or waited for
        self._host: _Waiting | None = None
        self._filling = False
        self._closed = False

    def fill(self) -> None:
        """See to it that there is one, if one can be had."""
        with self._lock:
            if self._closed or self._filling or self._host is not None:
                return
            self._filling = True
        made = None
        # The next group tells, if its host cannot be started either.
        with contextlib.suppress(OSError):
            made = self._made()
        if not self._keep(made) and made is not None:
            made.end()

    def take(self, token: str, arguments: Sequence[str], log: int) -> Child | None:
        """The host, which goes on with these arguments and writes to `log`; `None`: none is ready."""
        with self._lock:
            host = self._host
            if host is None or host.is_starting():
                return None
            self._host = None
            # It ended instead: what it cannot do here, the next one cannot either.
            self._closed = not host.is_ready()
        if len(token) == len(NO_TOKEN) and host.tell(token, arguments, log):
            return host.child
        host.end()
        return None

    def close(self) -> None:
        """End what is in stock, and have none any more."""
        with self._lock:
            self._closed, host, self._host = True, self._host, None
        if host is not None:
            host.end()

    def _keep(self, made: _Waiting | None) -> bool:
        with self._lock:
            self._filling = False
            if self._closed:
                return False
            self._host = made
            return True

    def _made(self) -> _Waiting:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                child = spawn(
                    [*self._argv, IN_STOCK, _ROOM],
                    env={**self._env, TOKEN_VARIABLE: NO_TOKEN},
                    cwd=self._cwd,
                    stdout_fd=theirs.fileno(),
                    parent_death_signal=None,
                )
            except BaseException:
                ours.close()
                raise
        return _Waiting(child, ours)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A host in stock, and the way to tell it."""

    child: Child
    connection: socket.socket

    def is_starting(self) -> bool:
        try:
            self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.connection.recv(_LARGEST) == _READY
        return False

    def tell(self, token: str, arguments: Sequence[str], log: int) -> bool:
        order = json.dumps({"token": token, "arguments": arguments}).encode()
        with self.connection:
            try:
                socket.send_fds(self.connection, [order], [log])
            except OSError:
                return False
        return True

    def end(self) -> None:
        self.connection.close()
        self.child.popen.kill()
        deadline = time.monotonic() + END_S
        while self.child.popen.poll() is None and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)


def told() -> list[str] | None:
    """In the host: get ready, wait, and be what is wanted. The arguments; `None`: it is not wanted.

    Raises `OSError` where /proc cannot be made to show it.
    """
    _write_constructors()
    appearance.show_variable(TOKEN_VARIABLE, NO_TOKEN)
    order, descriptors = b"", list[int]()
    with socket.socket(fileno=os.dup(1)) as connection, contextlib.suppress(ConnectionError):
        connection.send(_READY)
        order, descriptors, _, _ = socket.recv_fds(connection, _LARGEST, 1)
    if not order:
        return None
    for log in descriptors:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    wanted = json.loads(order)
    arguments: list[str] = wanted["arguments"]
    appearance.show_variable(TOKEN_VARIABLE, wanted["token"])
    appearance.show_arguments([*sys.orig_argv[: sys.orig_argv.index(IN_STOCK)], *arguments])
    return arguments


def _write_constructors() -> None:
    """Those of `quickdata` are written when they are first asked for, and now is the time."""
    for name, module in list(sys.modules.items()):
        if name.startswith("agentd."):
            for value in list(vars(module).values()):
                getattr(value, "__init__", None)
