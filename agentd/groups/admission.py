"""Whether this machine can run its part of a run, judged before any effect. Touches the disk: use a thread.

`plan_node` answers with everything resolved (interpreter, program, directory, environment), so that what
was checked is what is run.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from agentd.api.errors import LimitExceeded, NoSuchDevice, ProgramUnusable
from agentd.api.types import Command, EntrypointKind, LocalWorldSize, LocalWorldSizeRule, RoleSpec, RunSpec
from agentd.core.specs import MAX_WORKERS_PER_NODE, check_environment, local_world_size_of, roles_of_node
from agentd.procs.node import cpu_count, gpu_count
from agentd.quickdata import dataclass

DEFAULT_PYTHON = "python3"

# What belongs to agentd itself, to its own service manager or to its own gRPC, and to nobody it starts.
_OWN_PREFIXES = ("GRPC_", "AGENTD_", "LISTEN_", "WATCHDOG_")
_OWN_NAMES = frozenset({"NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM"})
_FDS_PER_WORKER = 3
_FDS_OF_HOST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """One role on this node, resolved."""

    role: RoleSpec
    local_world_size: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    log_root: str
    """Empty: below the state directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What admission asks of the machine; tests give another one."""

    node_id: str
    environ: Mapping[str, str]
    """agentd's own."""
    home: str
    worker_limit: int

    @classmethod
    def here(cls, node_id: str) -> Machine:
        """This machine, for this process."""
        limit = min(MAX_WORKERS_PER_NODE, _workers_by_descriptors())
        return cls(node_id=node_id, environ=dict(os.environ), home=str(Path.home()), worker_limit=limit)


def plan_node(
    spec: RunSpec, node_name: str, passed_env: Mapping[str, str], machine: Machine
) -> tuple[RolePlan, ...]:
    """This node's part of a valid spec; raises the `AgentError` that says why it cannot be."""
    check_environment("passed_env", passed_env)
    plans = tuple(_plan_role(role, node_name, passed_env, machine) for role in roles_of_node(spec, node_name))
    workers = sum(plan.local_world_size for plan in plans)
    if workers > machine.worker_limit:
        raise LimitExceeded(
            f"node {machine.node_id}: {workers} workers", f"{machine.worker_limit} on this node"
        )
    return plans


def worker_environment(own: Mapping[str, str], passed: Mapping[str, str], role: RoleSpec) -> dict[str, str]:
    """The environment below torch's contract: agentd's, the caller's, the role's, its devices. Later wins."""
    inherited = {name: value for name, value in own.items() if not _is_agents_own(name)}
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, role.devices))} if role.devices else {}
    return {**inherited, **passed, **role.env, **devices}


def _is_agents_own(name: str) -> bool:
    return name.startswith(_OWN_PREFIXES) or name in _OWN_NAMES


def _plan_role(role: RoleSpec, node_name: str, passed_env: Mapping[str, str], machine: Machine) -> RolePlan:
    env = worker_environment(machine.environ, passed_env, role)
    cwd = role.command.working_directory or machine.home
    _check_directory(machine.node_id, cwd)
    if role.log_dir:
        _check_log_root(machine.node_id, role.log_dir)
    return RolePlan(
        role=role,
        local_world_size=_count(local_world_size_of(role, node_name), role, env, machine),
        argv=resolve_command(role.command, env, cwd, machine.node_id),
        env=env,
        cwd=cwd,
        log_root=role.log_dir,
    )


def resolve_command(command: Command, env: Mapping[str, str], cwd: str, node_id: str) -> tuple[str, ...]:
    """The argv of a command here; raises `ProgramUnusable` for what is not there."""
    if command.kind is EntrypointKind.EXECUTABLE:
        return (_executable(command.entrypoint, env, cwd, node_id), *command.arguments)
    python = _executable(command.python or DEFAULT_PYTHON, env, cwd, node_id)
    if command.kind is EntrypointKind.MODULE:
        return (python, "-u", "-m", command.entrypoint, *command.arguments)
    _check_script(node_id, os.path.join(cwd, command.entrypoint))
    return (python, "-u", command.entrypoint, *command.arguments)


def _executable(name: str, env: Mapping[str, str], cwd: str, node_id: str) -> str:
    if "/" not in name:
        found = shutil.which(name, path=env.get("PATH", os.defpath))
        if found is None:
            raise ProgramUnusable(node_id, name, "no such program on the PATH of the workers")
        return found if found.startswith("/") else os.path.join(cwd, found)
    path = os.path.join(cwd, name)
    _check_path(node_id, path)
    if Path(path).is_dir():
        raise ProgramUnusable(node_id, path, "it is a directory, not a program")
    if not os.access(path, os.X_OK):
        raise ProgramUnusable(node_id, path, "it lacks the permission to be executed (chmod +x)")
    return path


def _check_script(node_id: str, path: str) -> None:
    _check_path(node_id, path)
    if not os.access(path, os.R_OK):
        raise ProgramUnusable(node_id, path, "agentd's user may not read it")
    if Path(path).is_dir() and not Path(path, "__main__.py").is_file():
        raise ProgramUnusable(node_id, path, "it is a directory without a __main__.py")


def _check_directory(node_id: str, path: str) -> None:
    _check_path(node_id, path)
    if not Path(path).is_dir():
        raise ProgramUnusable(node_id, path, "it is no directory")
    if not os.access(path, os.X_OK):
        raise ProgramUnusable(node_id, path, "agentd's user may not enter it")


def _check_log_root(node_id: str, path: str) -> None:
    """It need not exist yet."""
    folder = Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ProgramUnusable(node_id, str(folder), "it is no directory, so no logs can be put there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ProgramUnusable(node_id, str(folder), "agentd's user may not put logs there")


def _check_path(node_id: str, path: str) -> None:
    try:
        os.stat(path)
    except OSError as error:
        raise ProgramUnusable(node_id, path, (error.strerror or str(error)).lower()) from None


def _count(size: LocalWorldSize, role: RoleSpec, env: Mapping[str, str], machine: Machine) -> int:
    if not isinstance(size, LocalWorldSizeRule):
        if size > machine.worker_limit:
            raise LimitExceeded(
                f"node {machine.node_id}: {size} workers of role {role.role}",
                f"{machine.worker_limit} on this node",
            )
        return size
    gpus = 0 if size is LocalWorldSizeRule.CPU else len(role.devices) or gpu_count(env)
    if size is LocalWorldSizeRule.GPU and not gpus:
        raise NoSuchDevice(size.value, machine.node_id)
    return gpus or cpu_count()


def _workers_by_descriptors() -> int:
    """Workers whose descriptors fit into one host."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_WORKERS_PER_NODE
    return max(1, (soft - _FDS_OF_HOST) // _FDS_PER_WORKER)
