"""The environment and arguments of one worker: torch's contract to the letter, and agentd's few variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentd.elastic.agent.server.spec import Worker, WorkerGroup, WorkerSpec
from agentd.procs.tree import TOKEN_VARIABLE

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


def worker_env(
    group: WorkerGroup,
    worker: Worker,
    base: Mapping[str, str],
    *,
    restart_count: int,
    max_restarts: int,
    token: str,
) -> dict[str, str]:
    """What goes over `base`, the environment all workers share."""
    spec = group.spec
    env = {
        **shared_env(spec, base, token),
        "RANK": str(worker.global_rank),
        "WORLD_SIZE": str(worker.world_size),
        "LOCAL_RANK": "0" if spec.virtual_local_rank else str(worker.local_rank),
        "GROUP_RANK": str(group.group_rank),
        "GROUP_WORLD_SIZE": str(group.group_world_size),
        "ROLE_RANK": str(worker.role_rank),
        "ROLE_WORLD_SIZE": str(worker.role_world_size),
        "MASTER_ADDR": str(group.master_addr),
        "MASTER_PORT": str(group.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(restart_count),
        "TORCHELASTIC_MAX_RESTARTS": str(max_restarts),
        "AGENTD_ROUND": str(group.round),
    }
    if spec.virtual_local_rank:
        env[DEVICES_VARIABLE] = device_of(worker.local_rank, base.get(DEVICES_VARIABLE, ""))
    return env


def shared_env(spec: WorkerSpec, base: Mapping[str, str], token: str) -> dict[str, str]:
    """The part of it that is the same for all workers of all rounds."""
    run_id = spec.rdzv_handler.get_run_id()
    env = {
        "LOCAL_WORLD_SIZE": str(spec.local_world_size),
        "ROLE_NAME": spec.role,
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_USE_AGENT_STORE": str(spec.rdzv_handler.use_agent_store),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": base.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        "PYTHONUNBUFFERED": "1",
        "AGENTD_RUN_ID": run_id,
        TOKEN_VARIABLE: token,
    }
    if "OMP_NUM_THREADS" not in base and spec.local_world_size > 1:
        env["OMP_NUM_THREADS"] = "1"
    return env


def device_of(local_rank: int, visible: str) -> str:
    """The one device a worker sees in virtual mode."""
    if not visible:
        return str(local_rank)
    devices = visible.split(",")
    if local_rank >= len(devices):
        raise ValueError(f"{DEVICES_VARIABLE}={visible} has no device for local rank {local_rank}")
    return devices[local_rank]


def with_macros(args: tuple[Any, ...], local_rank: int) -> tuple[Any, ...]:
    """The arguments with `${local_rank}` replaced in texts. All else stays, a shell's `$$` too."""
    return tuple(
        arg.replace("${local_rank}", str(local_rank)) if isinstance(arg, str) else arg for arg in args
    )
