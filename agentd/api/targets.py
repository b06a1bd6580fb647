"""Where an agentd is found: the syntax of targets and the place of the default socket.

A target is `unix:/path`, `host`, `host:port`, `[v6]` or `[v6]:port`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from agentd.api.errors import InvalidSpec
from agentd.quickdata import dataclass

DEFAULT_PORT = 7460
HIGHEST_PORT = 65535
_DIGITS = 20
"""Of a port, zeros in front of it too."""

_HOST = re.compile(r"[A-Za-z0-9._-]+")
_V6 = re.compile(r"[0-9A-Fa-f:.%A-Za-z0-9_-]*:[0-9A-Fa-f:.%A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A Unix socket's path, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def is_unix(self) -> bool:
        """Whether it is a socket of this machine's file system."""
        return bool(self.path)

    def __str__(self) -> str:
        """The form gRPC, people and `parse_target` read alike."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_target(text: str, *, default_port: int = DEFAULT_PORT) -> Target:
    """Read a target. Raises `InvalidSpec` naming what is wrong with it."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path[2:] if path.startswith("///") else path
        if not path.startswith("/"):
            raise InvalidSpec(
                "target", f"{text!r}: the path of a Unix socket is absolute, as in unix:/run/x.sock"
            )
        if "\0" in path or not _is_text(path):
            raise InvalidSpec("target", f"{text!r}: the path of a Unix socket is UTF-8 and holds no NUL")
        return Target(path=path)
    host, port = _split(text, default_port)
    if not (_HOST.fullmatch(host) or _V6.fullmatch(host)):
        raise InvalidSpec("target", f"{text!r} is not unix:/path, host, host:port or [v6]:port")
    return Target(host=host, port=port)


def _split(text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise InvalidSpec("target", f"{text!r}: an IPv6 address stands in brackets, as in [::1]:7460")
        port = rest[1:]
    elif text.count(":") > 1:
        raise InvalidSpec("target", f"{text!r}: put an IPv6 address in brackets, as in [::1]:7460")
    else:
        host, colon, port = text.partition(":")
        if colon and not port:
            raise InvalidSpec("target", f"{text!r}: there is no port behind the colon")
    if not port:
        return host, default_port
    if not (port.isascii() and port.isdigit() and len(port) <= _DIGITS) or int(port) > HIGHEST_PORT:
        raise InvalidSpec("target", f"{text!r}: a port is a number from 0 to {HIGHEST_PORT}")
    return host, int(port)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def default_socket(environ: Mapping[str, str], uid: int) -> Target:
    """The socket that an agentd of user `uid` listens on, and its clients try, when nobody names one."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Target(path=os.path.join(runtime, "agentd", "agentd.sock"))
    if uid == 0:
        return Target(path="/run/agentd/agentd.sock")
    return Target(path=f"/tmp/agentd-{uid}/agentd.sock")
