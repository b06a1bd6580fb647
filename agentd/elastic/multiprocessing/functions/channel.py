"""The way back from a function worker: one value, its length first, read while the worker runs."""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
from typing import Any

from agentd.procs.waiter import Waiter

HEADER = struct.Struct("!Q")
PIECE_BYTES = 1 << 20
"""Read at once at most, so that nothing else waits long."""


class ValueChannel:
    """The agent's end. `theirs` goes to the worker and is closed here then."""

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._data = memoryview(bytearray(HEADER.size))
        self._filled = 0
        self._has_length = False
        self._reading = True
        self.arrived = False
        """Whether the whole value is here."""
        self.value: Any = None
        self.problem = ""
        """Why a value that has arrived cannot be had."""
        waiter.add(self._ours, self._read)

    @property
    def theirs(self) -> int:
        """The worker's end, while it is here."""
        return self._theirs.fileno()

    def handed_over(self) -> None:
        """The worker has its end now, or never will."""
        self._theirs.close()

    def drain(self) -> None:
        """Read what there is: all that will ever come, if the worker has ended."""
        while self._reading and self._read():
            pass

    def close(self) -> None:
        """Read no longer. A worker that still waits for an answer ends without."""
        self._stop()
        self._ours.close()
        self._theirs.close()

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._waiter.remove(self._ours)

    def _read(self) -> bool:
        try:
            count = self._ours.recv_into(self._data[self._filled : self._filled + PIECE_BYTES])
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if not count:
            self._stop()
            return False
        self._filled += count
        if self._filled == len(self._data):
            self._take()
        return True

    def _take(self) -> None:
        if not self._has_length:
            (length,) = HEADER.unpack(self._data)
            self._has_length, self._filled = True, 0
            try:
                self._data = memoryview(bytearray(length))
            except (MemoryError, OverflowError):
                self._arrive(f"{length} bytes do not fit into this process' memory")
            return
        try:
            self.value = pickle.loads(self._data)
        except Exception as error:  # noqa: BLE001 - the classes of a user's value may raise anything
            self._arrive(f"{type(error).__name__}: {error}")
        else:
            self._arrive("")

    def _arrive(self, problem: str) -> None:
        self.arrived, self.problem = True, problem
        self._data = memoryview(b"")
        self._stop()
        # The worker waits for that: it may end now, and with it what it shares.
        with contextlib.suppress(OSError):
            self._ours.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
