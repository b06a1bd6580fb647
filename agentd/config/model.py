"""The configuration of one agentd, as values. Where each came from is `agentd.config.load`'s business."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from agentd.api.targets import default_socket
from agentd.quickdata import dataclass


class LogFormat(str, enum.Enum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"

    def __str__(self) -> str:
        return self.value


class LogLevel(str, enum.Enum):
    """The least important event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    def __str__(self) -> str:
        return self.value


class HostMode(str, enum.Enum):
    """What hosts do when their agentd is gone without having stopped them."""

    KEEP = "keep"
    """They and their workers go on; the next agentd of the state directory takes them over."""
    STOP = "stop"
    """They stop their workers with the grace, and end."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What agentd says about itself, on standard error."""

    format: LogFormat = LogFormat.TEXT
    level: LogLevel = LogLevel.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownConfig:
    """How agentd goes away."""

    grace: float | None = None
    """Most seconds from SIGTERM to SIGKILL for workers when agentd shuts down. None: each run's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """What is kept of runs that have ended."""

    age: float = 14 * 86400.0
    """Seconds after its end in which a run is kept."""
    size: int = 10 << 30
    """Bytes that the runs of the state directory may take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsConfig:
    """What is kept of the workers' output while they write it."""

    cap: int = 1 << 30
    """Bytes of one stream of one worker in one round, below the state directory; the oldest go. 0: no cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything an operator can choose."""

    node_id: str
    """This node's name in every status. Unique in a fleet."""
    state_dir: str
    """Journal, sockets and logs. One agentd at a time owns it."""
    listen: tuple[str, ...]
    """Targets to serve on."""
    advertise_addr: str = ""
    """HOST[:PORT] that other machines are told. Empty: found from what is bound and from the route."""
    port_file: str = ""
    """Gets the bound addresses, one on a line, once agentd serves."""
    metrics_listen: str = ""
    """HOST:PORT that tells the node's conditions to Prometheus. Empty: none does."""
    insecure: bool = False
    """Allows addresses beyond loopback although nobody is asked who they are."""
    host_mode: HostMode = HostMode.KEEP
    """What becomes of workers when agentd dies."""
    log: LogConfig = LogConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    retention: RetentionConfig = RetentionConfig()
    logs: LogsConfig = LogsConfig()


SYSTEM_STATE_DIR = "/var/lib/agentd"


def default_config(environ: Mapping[str, str], *, uid: int, hostname: str) -> Config:
    """The configuration nobody chose."""
    return Config(
        node_id=hostname,
        state_dir=default_state_dir(environ, uid=uid),
        listen=(str(default_socket(environ, uid)),),
    )


def default_state_dir(environ: Mapping[str, str], *, uid: int) -> str:
    """The state directory of user `uid`: the system's for root, else the XDG one."""
    if uid == 0:
        return SYSTEM_STATE_DIR
    state_home = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME', '')}/.local/state"
    return f"{state_home}/agentd"
