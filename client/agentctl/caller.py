"""The environment as the caller gave it, before this program set anything for itself. Imported first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ENVIRON: Final[Mapping[str, str]] = MappingProxyType(dict(os.environ))


def name() -> str:
    """Who calls, for people who read why a run was stopped."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def quiet_grpc() -> None:
    """gRPC reads these at its first import. Its own log lines are no talk for users."""
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
