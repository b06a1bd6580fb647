"""Every setting by its key in the file: how the environment and the command line name it, how it is read."""

from __future__ import annotations

import enum
import ipaddress
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from agentd.api.errors import InvalidSpec
from agentd.api.targets import parse_target
from agentd.api.types import NAME
from agentd.config.model import HostMode, LogFormat, LogLevel
from agentd.quickdata import dataclass

E = TypeVar("E", bound=enum.Enum)

_MOST = 1 << 60


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf of the configuration tree."""

    key: str
    env: str
    flag: str
    """Empty: there is none."""
    read: Callable[[object], object]
    """Text or a TOML value to the value itself. Raises `ValueError` with what is wrong."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not a text")
    return value


def _node_id(value: object) -> str:
    name = _text(value)
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: 1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot")
    return name


def _path(value: object) -> str:
    path = _text(value)
    if not path:
        raise ValueError("the path is empty")
    if "\0" in path:
        raise ValueError("a path holds no NUL")
    try:
        path.encode()
        return str(Path.cwd() / Path(path).expanduser())
    except UnicodeEncodeError:
        # It stands in status and logs, which are UTF-8.
        raise ValueError(f"the path {path!r} is not UTF-8") from None
    except (RuntimeError, OSError) as error:
        raise ValueError(f"the path {path!r} leads nowhere: {error}") from None


def _optional_path(value: object) -> str:
    return _path(value) if _text(value) else ""


def _target(text: str) -> str:
    try:
        return str(parse_target(text))
    except InvalidSpec as error:
        raise ValueError(error.facts["problem"]) from None


def _optional_address(value: object) -> str:
    if not _text(value):
        return ""
    target = _target(_text(value))
    if parse_target(target).is_unix:
        raise ValueError("who collects metrics asks over TCP; give HOST:PORT")
    return target


def _targets(value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items:
        raise ValueError(f"{_shown(value)} is not a list of targets")
    targets = tuple(_target(_text(item).strip()) for item in items)
    repeated = next((target for target in targets if targets.count(target) > 1 and ":0" not in target), None)
    if repeated:
        raise ValueError(f"{repeated} stands there twice")
    return targets


def _advertised(value: object) -> str:
    text = _text(value)
    if not text:
        return ""
    try:
        target = parse_target(text, default_port=0)
    except InvalidSpec as error:
        raise ValueError(error.facts["problem"]) from None
    if target.is_unix:
        raise ValueError("a Unix socket cannot be reached from other machines; give HOST or HOST:PORT")
    if _is_wildcard(target.host):
        raise ValueError(f"{target.host} means every address and leads nowhere; give the one others reach")
    return text


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        return False


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{_shown(value)} is not true or false")


def _seconds(value: object) -> float | None:
    if isinstance(value, str) and not value:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{_shown(value)} is not a number of seconds")
    return seconds


_UNITS_OF_TIME = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_OF_SIZE = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _age(value: object) -> float:
    """Seconds, or a number with a unit."""
    seconds = _scaled(value, _UNITS_OF_TIME)
    if seconds is None:
        raise ValueError(f"{_shown(value)} is not a length of time: seconds, or a number with s, m, h or d")
    return seconds


def _size(value: object) -> int:
    """Bytes, or a number with a unit."""
    size = _scaled(value, _UNITS_OF_SIZE)
    if size is None:
        raise ValueError(f"{_shown(value)} is not a size: bytes, or a number with KiB, MiB, GiB or TiB")
    return int(size)


SMALLEST_CAP = 1 << 20


def _cap(value: object) -> int:
    """A size that leaves room for something, or 0."""
    size = _size(value)
    if 0 < size < SMALLEST_CAP:
        raise ValueError(f"{_shown(value)} is less than 1MiB; 0 is no cap")
    return size


def _scaled(value: object, units: Mapping[str, int]) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, int) and abs(value) >= _MOST:
        return None
    text = str(value).strip()
    unit = next((name for name in units if text.endswith(name)), "")
    try:
        number = float(text.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        return None
    return number if 0 <= number < _MOST else None


def _shown(value: object) -> str:
    """The value for a sentence; Python writes out no number of thousands of digits."""
    return "a number of very many digits" if isinstance(value, int) and abs(value) >= _MOST else repr(value)


def _one_of(kind: type[E]) -> Callable[[object], E]:
    def read(value: object) -> E:
        try:
            return kind(value)
        except ValueError:
            known = " or ".join(str(member.value) for member in kind)
            raise ValueError(f"{_shown(value)} is not {known}") from None

    return read


SETTINGS: Mapping[str, Setting] = {
    setting.key: setting
    for setting in (
        Setting("node_id", "AGENTD_NODE_ID", "--node-id", _node_id),
        Setting("state_dir", "AGENTD_STATE_DIR", "--state-dir", _path),
        Setting("listen", "AGENTD_LISTEN", "--listen", _targets),
        Setting("advertise_addr", "AGENTD_ADVERTISE_ADDR", "--advertise-addr", _advertised),
        Setting("metrics_listen", "AGENTD_METRICS_LISTEN", "--metrics-listen", _optional_address),
        Setting("port_file", "AGENTD_PORT_FILE", "--port-file", _optional_path),
        Setting("insecure", "AGENTD_INSECURE", "--insecure", _flag),
        Setting("host_mode", "AGENTD_HOST_MODE", "--host-mode", _one_of(HostMode)),
        Setting("log.format", "AGENTD_LOG_FORMAT", "--log-format", _one_of(LogFormat)),
        Setting("log.level", "AGENTD_LOG_LEVEL", "--log-level", _one_of(LogLevel)),
        Setting("shutdown.grace", "AGENTD_SHUTDOWN_GRACE", "--shutdown-grace", _seconds),
        Setting("retention.age", "AGENTD_RETENTION_AGE", "--retention-age", _age),
        Setting("retention.size", "AGENTD_RETENTION_SIZE", "--retention-size", _size),
        Setting("logs.cap", "AGENTD_LOGS_CAP", "--logs-cap", _cap),
    )
}
