"""Where followed lines go: a console that may be slow, stuck or gone, and is waited for only so long."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import stat
import time
from typing import Protocol, TextIO

STALL_S = 2.0
"""How long a stopped sink waits for a console that takes nothing."""
STOP_TIMEOUT_S = 30.0
"""How long it waits for one that takes what is left, but slowly."""

_RETRY_S = 0.01


class SinkStuck(Exception):
    """The console took nothing for `STALL_S`, or not all in `STOP_TIMEOUT_S`, after the stop."""


class Stop:
    """Told once, from any thread; `fileno` is readable from then on. Has the patience with a console."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.told_at: float | None = None
        """On the monotonic clock."""
        self._moved_at = 0.0

    def fileno(self) -> int:
        """To wait on."""
        return self._fd

    def tell(self) -> None:
        """Tell it. Harmless when repeated."""
        if self.told_at is None:
            self.told_at = time.monotonic()
            os.eventfd_write(self._fd, 1)

    def moved(self) -> None:
        """The console took something."""
        self._moved_at = time.monotonic()

    def patience_s(self) -> float:
        """How much longer the console is waited for, after this was told."""
        told_at = self.told_at or 0.0
        given_up_at = min(told_at + STOP_TIMEOUT_S, max(told_at, self._moved_at) + STALL_S)
        return given_up_at - time.monotonic()

    def wait(self, timeout_s: float, *others: int) -> bool:
        """Wait for this or one of `others` to become readable; tells whether this was told."""
        poll = select.poll()
        for fd in (self._fd, *others):
            poll.register(fd, select.POLLIN)
        poll.poll(timeout_s * 1000)
        return self.told_at is not None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


class Sink(Protocol):
    """Takes text. Raises `OSError` or `ValueError` when the console is gone."""

    def write(self, text: str) -> None: ...

    def close(self) -> None: ...


def sink_for(dst: TextIO, stop: Stop) -> Sink:
    """The way to `dst` that can be given up, if it is an ordinary file object, else `dst` itself."""
    with contextlib.suppress(OSError, ValueError):
        dst.flush()
    # Only the plain class: others (notebooks, captures) have a descriptor that is not where their text goes.
    if type(dst) is io.TextIOWrapper and not "".encode(dst.encoding):
        with contextlib.suppress(OSError, ValueError):
            return DescriptorSink(_own_descriptor(dst.fileno()), dst.encoding, stop)
    return TextSink(dst, stop)


def _own_descriptor(fd: int) -> int:
    """One that does not block, if the kernel gives us one apart from what others have of the same console."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


class TextSink:
    """Any object with a `write`."""

    def __init__(self, dst: TextIO, stop: Stop | None = None) -> None:
        self._dst = dst
        self._stop = stop

    def write(self, text: str) -> None:
        try:
            self._dst.write(text)
        except UnicodeEncodeError as error:
            self._dst.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        self._dst.flush()
        if self._stop is not None:
            self._stop.moved()

    def close(self) -> None: ...


class DescriptorSink:
    """A descriptor of its own, written to only when it can take something.

    Not through Python's buffer: a thread stuck there holds its lock, and with it the interpreter's end.
    """

    def __init__(self, fd: int, encoding: str, stop: Stop) -> None:
        self._fd = fd
        self._encoding = encoding
        self._stop = stop
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)

    def write(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, "backslashreplace"))
        while data:
            if not self._is_file:
                self._wait_writable()
            try:
                data = data[os.write(self._fd, data if self._is_file else _portion(data)) :]
            except BlockingIOError:
                # A terminal with room for less than the next character needs says that it has room.
                time.sleep(_RETRY_S)
            else:
                self._stop.moved()

    def close(self) -> None:
        os.close(self._fd)

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if self._stop.told_at is None:
            poll.register(self._stop.fileno(), select.POLLIN)
            if any(fd == self._fd for fd, _ in poll.poll()):
                return
            poll.unregister(self._stop.fileno())
        left_s = self._stop.patience_s()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise SinkStuck


def _portion(data: memoryview) -> memoryview:
    """What a pipe that is not full takes without blocking; whole lines if it can be, to mix well."""
    if len(data) <= select.PIPE_BUF:
        return data
    end = bytes(data[: select.PIPE_BUF]).rfind(b"\n") + 1
    return data[: end or select.PIPE_BUF]
