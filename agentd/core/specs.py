"""What a run spec means: whether it is valid, which fields differ between two, what a node has of it.

Everything that can be judged without a machine is judged here; `groups.admission` asks the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import NamedTuple

from agentd.api.errors import InvalidSpec, LimitExceeded
from agentd.api.types import (
    MAX_DURATION,
    NAME,
    SHORTEST_LEASE,
    Command,
    LocalWorldSize,
    LocalWorldSizeRule,
    RendezvousSpec,
    RoleSpec,
    RunSpec,
)

MAX_WORKERS_PER_NODE = 4096
MAX_ROLES = 64
MAX_NODES = 4096
MAX_RESTARTS = 1_000_000
MAX_TEXT = 1024 * 1024
"""Bytes of all arguments of a role, and of all its environment."""
MAX_PRELOADED = 64
MAX_MODULE_NAME = 256
MAX_STRING = 131_071
"""Bytes of one argument or variable that the kernel hands to a program."""
MAX_REQUEST_ID = 128
MAX_INCARNATION = (1 << 53) - 1
"""Exact in every JSON; as milliseconds, far beyond any clock. Each use of an id goes above the last."""

_NAME_RULE = "1 to 128 characters of A-Z a-z 0-9 . _ -, not starting with a dot"
_DEVICE_LIMIT = 4096
_ENV_NAME = re.compile(r"[^=\0]+")


class Member(NamedTuple):
    """A worker group of a run by its names: one role on one node."""

    node: str
    role: str

    def __str__(self) -> str:
        return f"{self.node}/{self.role}"


def validate(spec: RunSpec) -> None:
    """Raise `InvalidSpec` or `LimitExceeded` for the first thing no node could do."""
    check_name("run_id", spec.run_id)
    _check_nodes(spec.nodes)
    if not 1 <= len(spec.roles) <= MAX_ROLES:
        raise InvalidSpec("roles", f"a run has 1 to {MAX_ROLES} roles, this has {len(spec.roles)}")
    _check_unique("roles", "role", [role.role for role in spec.roles])
    for role in spec.roles:
        if spec.external_agents:
            _check_external_role(role, spec)
        else:
            _check_role(role, spec)
    _check_rendezvous(spec)
    _check_range("max_restarts", spec.max_restarts, 0, MAX_RESTARTS)
    if spec.max_membership_changes is not None:
        _check_range("max_membership_changes", spec.max_membership_changes, 0, MAX_RESTARTS)
    _check_duration("stop_grace", spec.stop_grace, zero=True)
    _check_duration("monitor_interval", spec.monitor_interval)
    _check_duration("controller_lease", spec.controller_lease)
    if spec.controller_lease is not None and spec.controller_lease < SHORTEST_LEASE:
        problem = f"{spec.controller_lease:g} s leaves no time to renew it; give {SHORTEST_LEASE:g} s or more"
        raise InvalidSpec("controller_lease", problem)
    check_environment("labels", spec.labels)
    _check_preload(spec)


def check_name(field: str, name: str) -> None:
    """Raise `InvalidSpec` for a name that could not be a folder's name too."""
    if not NAME.fullmatch(name):
        raise InvalidSpec(field, f"{shortened(name)} is no name: {_NAME_RULE}")


def check_environment(field: str, env: Mapping[str, str]) -> None:
    """Raise for variables that no process can be given."""
    total = 0
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise InvalidSpec(
                field, f"{shortened(name)} is no name of a variable: it is empty, or has = or NUL"
            )
        if "\0" in value:
            raise InvalidSpec(f"{field}[{name}]", "a value with a NUL character cannot be passed on")
        size = _encoded_size(f"{field}[{name}]", name) + _encoded_size(f"{field}[{name}]", value) + 2
        if size > MAX_STRING:
            raise LimitExceeded(f"{field}[{shortened(name)}] ({size} bytes)", f"{MAX_STRING} bytes")
        total += size
    if total > MAX_TEXT:
        raise LimitExceeded(f"{field} ({total} bytes)", f"{MAX_TEXT} bytes")


def differing_fields(one: RunSpec, other: RunSpec) -> tuple[str, ...]:
    """Names of the fields in which two specs as sent differ; maps and node lists have no order."""
    names = tuple(_differences("", _comparable(one), _comparable(other)))
    # The order of roles decides ranks, so it is no accident as that of nodes is.
    reordered = [role.role for role in one.roles] != [role.role for role in other.roles]
    return names or (("roles",) if reordered else ())


def expected_members(spec: RunSpec) -> tuple[Member, ...]:
    """Every listed (node, role), role by role in the order of the spec; none if the membership is open."""
    return tuple(Member(node, role.role) for role in spec.roles for node in role.nodes or spec.nodes)


def member_bounds(spec: RunSpec) -> tuple[int, int]:
    """Fewest and most members of a round. An open run of no said size is one node with all its roles."""
    rendezvous, listed = spec.rendezvous, sum(len(role.nodes or spec.nodes) for role in spec.roles)
    lowest = rendezvous.min_members or rendezvous.max_members or listed or len(spec.roles)
    highest = rendezvous.max_members or max(lowest, listed)
    return lowest, highest


def roles_of_node(spec: RunSpec, node_name: str) -> tuple[RoleSpec, ...]:
    """The roles a node takes part in, by the caller's name for it.

    A node that the list lacks (it joined later, or the list is open) has every role that is bound to no node,
    or the only one there is.
    """
    if node_name in spec.nodes:
        return tuple(role for role in spec.roles if not role.nodes or node_name in role.nodes)
    if len(spec.roles) == 1:
        return spec.roles
    return tuple(role for role in spec.roles if not role.nodes)


def local_world_size_of(role: RoleSpec, node_name: str) -> LocalWorldSize:
    """Workers of a role on a node: the exception for it, else the rule for all."""
    return role.local_world_size_by_node.get(node_name, role.local_world_size)


def shortened(text: str, limit: int = 60) -> str:
    """The text in quotes, fit for a sentence."""
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


def _check_nodes(nodes: tuple[str, ...]) -> None:
    if len(nodes) > MAX_NODES:
        raise LimitExceeded(f"nodes ({len(nodes)})", str(MAX_NODES))
    for node in nodes:
        if not node or len(node) > 512 or any(ord(char) < 33 for char in node):
            raise InvalidSpec("nodes", f"{shortened(node)} is no node's name")
    _check_unique("nodes", "node", nodes)


def _check_unique(field: str, what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidSpec(field, f"{what} {shortened(name)} is named twice")
        seen.add(name)


def _check_role(role: RoleSpec, spec: RunSpec) -> None:
    check_name("roles.role", role.role)
    where = f"roles[{role.role}]"
    _check_unique(f"{where}.nodes", "node", role.nodes)
    strangers = [node for node in (*role.nodes, *role.local_world_size_by_node) if node not in spec.nodes]
    if strangers:
        raise InvalidSpec(f"{where}.nodes", f"{shortened(strangers[0])} is not in the run's node list")
    _check_local_world_size(f"{where}.local_world_size", role.local_world_size)
    for node, size in role.local_world_size_by_node.items():
        _check_local_world_size(f"{where}.local_world_size_by_node[{node}]", size)
    _check_command(f"{where}.command", role.command)
    check_environment(f"{where}.env", role.env)
    _check_unique(f"{where}.devices", "device", [str(device) for device in role.devices])
    for device in role.devices:
        _check_range(f"{where}.devices", device, 0, _DEVICE_LIMIT)
    _check_range(f"{where}.master_port", role.master_port, 0, 65_535)
    _check_text(f"{where}.master_addr", role.master_addr)
    _check_text(f"{where}.log_dir", role.log_dir)
    if role.log_dir and not role.log_dir.startswith("/"):
        raise InvalidSpec(f"{where}.log_dir", f"{shortened(role.log_dir)} is not an absolute path")


def _check_preload(spec: RunSpec) -> None:
    if len(spec.preload) > MAX_PRELOADED:
        raise LimitExceeded(f"preload ({len(spec.preload)} modules)", str(MAX_PRELOADED))
    for name in spec.preload:
        if len(name) > MAX_MODULE_NAME or not all(part.isidentifier() for part in name.split(".")):
            raise InvalidSpec(
                "preload", f"{shortened(name)} is no name of a module, such as torch or my.package"
            )
    if spec.external_agents and spec.preload:
        raise InvalidSpec("preload", "agents of their own (external_agents) know what they run")
    if spec.standby and not spec.preload:
        raise InvalidSpec(
            "standby", "workers wait for their round only if they are forked: name modules to preload"
        )


def _check_external_role(role: RoleSpec, spec: RunSpec) -> None:
    check_name("roles.role", role.role)
    if spec.nodes:
        raise InvalidSpec(
            "nodes", "agents of their own (external_agents) are not listed; give only the sizes"
        )
    if role != RoleSpec(role=role.role, command=Command(entrypoint="")):
        problem = "agents of their own (external_agents) know what they run: the role has a name and no more"
        raise InvalidSpec(f"roles[{role.role}]", problem)


def _check_local_world_size(field: str, size: LocalWorldSize) -> None:
    if not isinstance(size, LocalWorldSizeRule):
        _check_range(field, size, 1, MAX_WORKERS_PER_NODE)


def _check_command(where: str, command: Command) -> None:
    if not command.entrypoint:
        raise InvalidSpec(f"{where}.entrypoint", "it is empty: name a script, a module or an executable")
    _check_text(f"{where}.entrypoint", command.entrypoint)
    _check_text(f"{where}.python", command.python)
    _check_text(f"{where}.working_directory", command.working_directory)
    if command.working_directory and not command.working_directory.startswith("/"):
        problem = f"{shortened(command.working_directory)} is not an absolute path"
        raise InvalidSpec(f"{where}.working_directory", problem)
    total = sum(_check_text(f"{where}.arguments", argument) + 1 for argument in command.arguments)
    if total > MAX_TEXT:
        raise LimitExceeded(f"{where}.arguments ({total} bytes)", f"{MAX_TEXT} bytes")


def _check_text(field: str, text: str) -> int:
    if "\0" in text:
        raise InvalidSpec(field, "a NUL character cannot be passed on")
    size = _encoded_size(field, text)
    if size > MAX_STRING:
        raise LimitExceeded(f"{field} ({size} bytes in one)", f"{MAX_STRING} bytes")
    return size


def _encoded_size(field: str, text: str) -> int:
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise InvalidSpec(field, "it has characters that no encoding knows") from None


def _check_rendezvous(spec: RunSpec) -> None:
    rendezvous = spec.rendezvous
    _check_range("rendezvous.min_members", rendezvous.min_members, 0, MAX_NODES * MAX_ROLES)
    _check_range("rendezvous.max_members", rendezvous.max_members, 0, MAX_NODES * MAX_ROLES)
    lowest, highest = member_bounds(spec)
    if lowest > highest:
        raise InvalidSpec("rendezvous.min_members", f"{lowest} is more than max_members, which is {highest}")
    for name in _RENDEZVOUS_DURATIONS:
        _check_duration(f"rendezvous.{name}", getattr(rendezvous, name), zero=name in _ZERO_MAKES_SENSE)
    if rendezvous.heartbeat is not None and rendezvous.lease is not None:
        if rendezvous.lease <= rendezvous.heartbeat:
            problem = f"{rendezvous.lease:g} s leaves no time for a heartbeat each {rendezvous.heartbeat:g} s"
            raise InvalidSpec("rendezvous.lease", problem)


_ZERO_MAKES_SENSE = frozenset({"last_call", "reattach_window"})
_RENDEZVOUS_DURATIONS = tuple(
    field.name for field in fields(RendezvousSpec) if field.name not in ("min_members", "max_members")
)


def _check_range(field: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise InvalidSpec(field, f"{value} is not within {lowest}..{highest}")


def _check_duration(field: str, seconds: float | None, *, zero: bool = False) -> None:
    if seconds is None or (zero and seconds == 0):
        return
    if not math.isfinite(seconds) or not 0 < seconds <= MAX_DURATION:
        raise InvalidSpec(field, f"{seconds:g} s is not a time between 0 and a year")


def _comparable(value: object) -> object:
    """Frozen data as nested dicts, without what has no order."""
    if isinstance(value, RunSpec):
        tree = {f.name: _comparable(getattr(value, f.name)) for f in fields(value)}
        roles = {role.role: _comparable(role) for role in value.roles}
        return tree | {"nodes": sorted(value.nodes), "roles": roles}
    if isinstance(value, RoleSpec):
        tree = {f.name: _comparable(getattr(value, f.name)) for f in fields(value) if f.name != "role"}
        return tree | {"nodes": sorted(value.nodes)}
    if is_dataclass(value):
        return {f.name: _comparable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return value


def _differences(name: str, one: object, other: object) -> Iterator[str]:
    if one == other:
        return
    if not (isinstance(one, dict) and isinstance(other, dict)):
        yield name
        return
    for key in sorted(one.keys() | other.keys()):
        inner = (
            f"{name}[{key}]" if name in _MAPS or name.endswith(_INNER_MAPS) else f"{name}.{key}".lstrip(".")
        )
        if key not in one or key not in other:
            yield inner
        else:
            yield from _differences(inner, one[key], other[key])


_MAPS = frozenset({"roles", "labels"})
_INNER_MAPS = (".env", ".local_world_size_by_node")
