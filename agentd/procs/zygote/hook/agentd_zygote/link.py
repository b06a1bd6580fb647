"""The zygote's side of `agentd.procs.zygote.wire`."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
MOST_FDS = 253


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
