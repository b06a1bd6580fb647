"""The descriptors and objects that go between a process and its zygote, and from it to each blank.

Both speak over a socket that keeps messages apart: one JSON object each, of a bounded size, with the version
of this protocol in it. What may be large, such as an environment, goes as a file in memory.

    zygote -> parent   {"op": "ready"} | {"op": "failed", "problem"} | {"op": "refused", "problem"}
    parent -> zygote   {"op": "fork"} and a socket for each blank that is wanted
    blank  -> parent   {"pid"} once it is the parent's own child; later {"begun"} or {"errno"}
    parent -> blank    {"op": "begin"} and its order, its lifeline, its stdout, its stderr

A blank has forked, and waits. Without a parent it ends.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 1
"""The zygote runs the same installation's file, but perhaps one that was upgraded meanwhile."""
LARGEST = 65_536
MOST_FDS = 64
"""Of one message; the kernel's limit is 253."""


class ZygoteError(Exception):
    """The other side says what nobody here understands."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Ours, which never blocks, and theirs."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def send(connection: socket.socket, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
    """Send one message. Raises `OSError`, also when the other side reads nothing."""
    data = json.dumps({"v": VERSION, **message}).encode()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], ancillary)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message; `None` at the end. Raises `BlockingIOError` and `ZygoteError`."""
    try:
        data = connection.recv(LARGEST)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not data:
        return None
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ZygoteError(f"it says what is no JSON: {error}") from None
    if not isinstance(message, dict) or message.get("v") != VERSION:
        raise ZygoteError(f"it does not speak version {VERSION} of the protocol")
    return message


def in_memory(content: Mapping[str, object]) -> int:
    """A descriptor of a file that holds this as JSON; the caller closes it."""
    fd = os.memfd_create("agentd-order", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(json.dumps(content).encode())
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
