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


class SinkStuck(Exception):
    """The console took nothing for `STALL_S`, or not all in time, after the stop."""


class Stop:
    """Told once, from any thread; `fileno` is readable from then on."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.deadline: float | None = None
        """On the monotonic clock: when even a console that still takes something is given up."""

    def fileno(self) -> int:
        """To wait on."""
        return self._fd

    def set(self, deadline: float) -> None:
        """Tell it."""
        self.deadline = deadline
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout_s: float, *others: int) -> bool:
        """Wait for this or one of `others` to become readable; tells whether this was told."""
        poll = select.poll()
        for fd in (self._fd, *others):
            poll.register(fd, select.POLLIN)
        poll.poll(timeout_s * 1000)
        return self.deadline is not None

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
            return DescriptorSink(fcntl.fcntl(dst.fileno(), fcntl.F_DUPFD_CLOEXEC, 3), dst.encoding, stop)
    return TextSink(dst)


class TextSink:
    """Any object with a `write`."""

    def __init__(self, dst: TextIO) -> None:
        self._dst = dst

    def write(self, text: str) -> None:
        try:
            self._dst.write(text)
        except UnicodeEncodeError as error:
            self._dst.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        self._dst.flush()

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
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self._fd, data if self._is_file else _portion(data)) :]

    def close(self) -> None:
        os.close(self._fd)

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if self._stop.deadline is None:
            poll.register(self._stop.fileno(), select.POLLIN)
            if any(fd == self._fd for fd, _ in poll.poll()):
                return
            poll.unregister(self._stop.fileno())
        assert self._stop.deadline is not None
        left_s = self._stop.deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(min(STALL_S, left_s) * 1000):
            raise SinkStuck


def _portion(data: memoryview) -> memoryview:
    """What a pipe that is not full takes without blocking; whole lines if it can be, to mix well."""
    if len(data) <= select.PIPE_BUF:
        return data
    end = bytes(data[: select.PIPE_BUF]).rfind(b"\n") + 1
    return data[: end or select.PIPE_BUF]
