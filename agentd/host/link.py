"""The host's connection to its agentd: dials, redials, never blocks. It lives in the host's `Waiter`."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable

from agentd.host.wire import AgentFrame, Frame, FrameReader, Hello, HostFrame, WireError, encode, since
from agentd.procs.waiter import Waiter

SOCKET_NAME = "hosts.sock"
REDIAL_S = 0.1
MAX_OUTGOING = 8 * 1024 * 1024
"""An agentd that reads this little is as good as gone."""

SENT_AT_ONCE = 64 * 1024
_READ_SIZE = 65_536


class AgentLink:
    """One connection at a time to whichever agentd owns the state directory."""

    def __init__(
        self,
        waiter: Waiter,
        state_dir: str,
        hello: Callable[[], Hello],
        on_frame: Callable[[AgentFrame], object],
        on_lost: Callable[[], object],
        untold: Callable[[], Iterable[HostFrame]] = tuple,
    ) -> None:
        """`untold`: what is said after each hello."""
        self._waiter = waiter
        self._state_dir = state_dir
        self._hello = hello
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._untold = untold
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._outgoing = bytearray()
        self._next_dial = 0.0
        self._leaving = False
        self.problem = ""
        """Why there is no connection."""
        self.protocol = 1
        """The version that agentd understands, as its welcome says; later frames it is not sent."""
        waiter.add_pump(self._pump)

    @property
    def connected(self) -> bool:
        """Whether an agentd is at the other end."""
        return self._socket is not None

    def send(self, frame: HostFrame) -> None:
        """Send with the next wait; dropped without a connection, as the next agentd reads host.jsonl.

        What is said in one go is heard in one go: an end of a worker and what follows from it.
        """
        if self._socket is None or since(frame) > self.protocol:
            return
        if not self._outgoing:
            self._waiter.add(self._socket, self._receive, writable=self._flush)
        self._outgoing += encode(frame)
        if len(self._outgoing) > SENT_AT_ONCE:
            self._flush()

    def leave(self, timeout_s: float) -> None:
        """Return once agentd has read all that was sent and hung up, or the patience ends.

        Whoever just closes loses what is on its way if agentd says something at that moment: its write fails,
        and with that its connection, unread.
        """
        self._leaving = True
        deadline = time.monotonic() + timeout_s
        self._waiter.wait_until(lambda: not self._outgoing or self._socket is None, deadline)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        self._waiter.wait_until(lambda: self._socket is None, deadline)

    def close(self) -> None:
        """Hang up and dial no more."""
        self._waiter.remove_pump(self._pump)
        self._hang_up("closed")

    def _pump(self, now: float) -> float | None:
        wish = self._redial(now)
        if self._outgoing:
            # Before whatever else there is to do; what is said after this goes when the socket is asked.
            self._flush()
            if self._leaving:
                return now  # that is waited for
        return wish

    def _redial(self, now: float) -> float | None:
        if self._socket is not None or self._leaving:
            return None
        if now >= self._next_dial:
            self._next_dial = now + REDIAL_S
            self._dial()
        return None if self._socket is not None else self._next_dial

    def _dial(self) -> None:
        dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        dialled.setblocking(False)
        try:
            connect_below(dialled, self._state_dir, SOCKET_NAME)
        except OSError as error:
            dialled.close()
            self.problem = f"{self._state_dir}/{SOCKET_NAME}: {error.strerror or error}"
            return
        self._socket, self._reader = dialled, FrameReader()
        self._waiter.add(dialled, self._receive)
        self.send(self._hello())
        for frame in self._untold():
            self.send(frame)

    def _receive(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(str(error))
            return
        if not data:
            self._lose("agentd closed the connection")
            return
        try:
            frames = list(self._reader.feed(data))
        except WireError as error:
            self._lose(str(error))
            return
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        # A frame of the other direction is a stranger's; nothing here acts on it.
        if isinstance(frame, AgentFrame) and not self._leaving:
            self._on_frame(frame)

    def _flush(self) -> None:
        if self._socket is None:
            return
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError as error:
            # Reading sees the end too, and before it what agentd said last.
            self.problem = str(error)
            self._outgoing.clear()
        if len(self._outgoing) > MAX_OUTGOING:
            self._lose("agentd reads nothing")
            return
        self._waiter.add(self._socket, self._receive, writable=self._flush if self._outgoing else None)

    def _lose(self, problem: str) -> None:
        self._hang_up(problem)
        if not self._leaving:
            self._on_lost()

    def _hang_up(self, problem: str) -> None:
        lost, self._socket = self._socket, None
        self.problem = problem
        self._outgoing.clear()
        if lost is not None:
            self._waiter.remove(lost)
            lost.close()


def connect_below(connecting: socket.socket, directory: str, name: str) -> None:
    """Connect to a Unix socket in a directory, however long the directory's path is."""
    with contextlib.ExitStack() as stack:
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        connecting.connect(f"/proc/self/fd/{folder}/{name}")
