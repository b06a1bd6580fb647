"""`--spec FILE.toml`: a run with several roles. Keys are the fields of `RunSpec`; durations are seconds.

Pure: text in, spec out. `ValueError` names the key that is wrong.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from agentctl.flags import parse_numbers
from agentd.api.errors import InvalidSpec
from agentd.api.types import (
    Command,
    EntrypointKind,
    IsolationPolicy,
    LocalWorldSize,
    LocalWorldSizeRule,
    RendezvousSpec,
    RoleSpec,
    RunSpec,
)
from agentd_client.nodes import node_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST = (1 << 32) - 1

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)


def parse_spec(text: str) -> RunSpec:
    """The spec of a file's text. An absent `run_id` is left empty."""
    try:
        table = _Table("", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {error}") from None
    except (ValueError, RecursionError):
        raise ValueError("a number in it is too long, or a list too deeply nested") from None
    roles = tuple(_role(role) for role in table.tables("roles"))
    if not roles:
        raise ValueError("roles: there is none; begin one with [[roles]]")
    spec = RunSpec(
        run_id=table.take("run_id", str, ""),
        roles=roles,
        nodes=_nodes(table),
        rendezvous=_rendezvous(table.table("rendezvous")),
        max_restarts=table.take("max_restarts", int, 0),
        max_membership_changes=table.optional("max_membership_changes", int),
        stop_grace=table.seconds("stop_grace"),
        monitor_interval=table.seconds("monitor_interval"),
        labels=table.texts("labels"),
        no_rejoin=table.take("no_rejoin", bool, False),
        controller_lease=table.seconds("controller_lease"),
        on_isolation=table.one_of("on_isolation", IsolationPolicy, IsolationPolicy.KEEP),
        preload=tuple(table.list_of("preload", str)),
        standby=table.take("standby", bool, False),
    )
    table.end()
    return spec


def _role(table: _Table) -> RoleSpec:
    sizes = table.table("local_world_size_by_node")
    role = RoleSpec(
        role=table.take("role", str, "default"),
        command=_command(table.table("command")),
        nodes=_nodes(table),
        local_world_size=_size(table, "local_world_size", table.pop("local_world_size", 1)),
        local_world_size_by_node={
            _node(sizes, node): _size(sizes, node, sizes.pop(node)) for node in list(sizes.values)
        },
        env=table.texts("env"),
        devices=_devices(table),
        master_addr=table.take("master_addr", str, ""),
        master_port=table.take("master_port", int, 0),
        log_dir=table.take("log_dir", str, ""),
    )
    table.end()
    return role


def _command(table: _Table) -> Command:
    command = Command(
        entrypoint=table.take("entrypoint", str, ""),
        arguments=table.list_of("arguments", str),
        kind=table.one_of("kind", EntrypointKind, EntrypointKind.SCRIPT),
        python=table.take("python", str, ""),
        working_directory=table.take("working_directory", str, ""),
    )
    if not command.entrypoint:
        raise ValueError(f"{table.path('entrypoint')}: name a script, a module or an executable")
    table.end()
    return command


def _rendezvous(table: _Table) -> RendezvousSpec:
    spec = RendezvousSpec(
        min_members=table.take("min_members", int, 0),
        max_members=table.take("max_members", int, 0),
        join_timeout=table.seconds("join_timeout"),
        last_call=table.seconds("last_call"),
        hub_timeout=table.seconds("hub_timeout"),
        heartbeat=table.seconds("heartbeat"),
        lease=table.seconds("lease"),
        reattach_window=table.seconds("reattach_window"),
    )
    table.end()
    return spec


def _nodes(table: _Table) -> tuple[str, ...]:
    return tuple(_node(table, node) for node in table.list_of("nodes", str))


def _node(table: _Table, text: str) -> str:
    try:
        return node_of(text).name
    except InvalidSpec as error:
        raise ValueError(f"{table.path('nodes')}: {error.facts['problem']}") from None


def _size(table: _Table, key: str, value: object) -> LocalWorldSize:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
        return value
    rules = [rule.value for rule in LocalWorldSizeRule]
    if value in rules:
        return LocalWorldSizeRule(value)
    raise ValueError(f"{table.path(key)}: {_shown(value)} is not a number from 1, nor {', '.join(rules)}")


def _devices(table: _Table) -> tuple[int, ...]:
    value = table.pop("devices", ())
    if isinstance(value, str):
        try:
            return parse_numbers(value)
        except ValueError as error:
            raise ValueError(f"{table.path('devices')}: {error}") from None
    table.values["devices"] = value
    return table.list_of("devices", int)


def _shown(value: object) -> str:
    """The value for a sentence; Python writes out no number of thousands of digits."""
    return "a number of very many digits" if isinstance(value, int) and abs(value) > 1 << 64 else repr(value)


class _Table:
    """A TOML table that is emptied while it is read: what is left at the end is a mistake."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self.values = dict(values)

    def path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def pop(self, key: str, default: object = None) -> Any:
        return self.values.pop(key, default)

    def take(self, key: str, kind: type[T], default: T) -> T:
        value = self.optional(key, kind)
        return default if value is None else value

    def optional(self, key: str, kind: type[T]) -> T | None:
        value = self.pop(key)
        if value is None:
            return None
        return self._checked(self.path(key), value, kind)

    def one_of(self, key: str, kind: type[E], default: E) -> E:
        value, known = self.take(key, str, default.value), [member.value for member in kind]
        if value not in known:
            raise ValueError(f"{self.path(key)}: {_shown(value)} is not {' or '.join(known)}")
        return kind(value)

    def seconds(self, key: str) -> float | None:
        value = self.pop(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST:
            raise ValueError(f"{self.path(key)}: {_shown(value)} is not a number of seconds")
        return float(value)

    def list_of(self, key: str, kind: type[T]) -> tuple[T, ...]:
        value = self.pop(key, [])
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{self.path(key)}: {_shown(value)} is not a list")
        return tuple(self._checked(f"{self.path(key)}[{i}]", item, kind) for i, item in enumerate(value))

    def texts(self, key: str) -> dict[str, str]:
        table = self.table(key)
        return {name: self._checked(table.path(name), value, str) for name, value in table.values.items()}

    def table(self, key: str) -> _Table:
        value = self.pop(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{self.path(key)}: {_shown(value)} is not a table")
        return _Table(self.path(key), value)

    def tables(self, key: str) -> list[_Table]:
        value = self.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError(f"{self.path(key)}: it is not a list of tables; begin each with [[{key}]]")
        return [_Table(f"{self.path(key)}[{i}]", item) for i, item in enumerate(value)]

    def end(self) -> None:
        """Raise for a key nobody has asked for."""
        for key in self.values:
            raise ValueError(f"{self.path(key)}: there is no such field")

    @staticmethod
    def _checked(path: str, value: object, kind: type[T]) -> T:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            names: dict[Callable[..., Any], str] = {
                str: "a text",
                int: "a whole number",
                bool: "true or false",
            }
            raise ValueError(f"{path}: {_shown(value)} is not {names.get(kind, kind.__name__)}")
        if isinstance(value, int) and not 0 <= value <= _MOST:
            raise ValueError(f"{path}: {_shown(value)} is not a whole number from 0 to {_MOST}")
        return value
