"""Tells whoever started agentd where it serves: standard output, the port file, a pipe, systemd."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentd.api.targets import Target
from agentd.daemon.exits import StartFailed


class PortFileUnwritable(StartFailed):
    """The port file cannot be written; whoever waits for it would wait for ever."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"port file {path}: {problem}")


def print_addresses(bound: Sequence[Target]) -> None:
    """One `serving on TARGET` line for each address, for people and scripts."""
    with contextlib.suppress(OSError):
        print(*(f"serving on {target}" for target in bound), sep="\n", flush=True)


def write_port_file(path: str, bound: Sequence[Target]) -> None:
    """The bound TCP ports, one on a line, all at once or not at all. Raises `StartFailed`."""
    text = "".join(f"{target.port}\n" for target in bound if not target.is_unix)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{Path(path).name}.", dir=Path(path).parent)
        try:
            with open(fd, "w", encoding="ascii") as file:
                os.fchmod(fd, 0o644)
                file.write(text)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PortFileUnwritable(path, os.strerror(error.errno or 0).lower()) from None


def tell_starter(fd: int, facts: Mapping[str, object]) -> None:
    """One JSON line to the pipe of the process that started us, which is then closed."""
    # A starter that went away meanwhile is the lifeline's business.
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(facts).encode() + b"\n")
    with contextlib.suppress(OSError):
        os.close(fd)


def notify_systemd(state: str, patience_s: float = 1.0) -> None:
    """Tell systemd, where it asked to be told, if it listens within that time."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
        messenger.settimeout(patience_s)
        messenger.connect("\0" + address[1:] if address.startswith("@") else address)
        messenger.send(state.encode())
