"""What a worker finds in its environment and arguments, for the settings that vary."""

from __future__ import annotations

import pytest

from agentd.elastic import WorkerGroup, WorkerSpec
from agentd.elastic.agent.server.worker_env import device_of, with_macros, worker_env
from agentd.elastic.multiprocessing import Std, to_map
from tests.unit.elastic.test_simple_agent import Coordinator


def _env(size: int, base: dict[str, str], *, virtual: bool = False, local_rank: int = 0) -> dict[str, str]:
    spec = WorkerSpec("w", size, Coordinator(), entrypoint="x", virtual_local_rank=virtual)
    group = WorkerGroup(spec)
    worker = group.workers[local_rank]
    return worker_env(group, worker, base, restart_count=1, max_restarts=2, token="t")


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [
        (1, {}, None),
        (2, {}, "1"),
        (2, {"OMP_NUM_THREADS": "8"}, None),
    ],
)
def test_omp_threads_are_limited_only_where_nobody_decided(
    size: int, base: dict[str, str], expected: str | None
) -> None:
    assert _env(size, base).get("OMP_NUM_THREADS") == expected


def test_the_nccl_setting_of_the_base_environment_stays() -> None:
    assert _env(1, {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"})["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"


def test_virtual_workers_see_local_rank_0_and_one_device() -> None:
    env = _env(2, {"CUDA_VISIBLE_DEVICES": "4,6"}, virtual=True, local_rank=1)
    assert (env["LOCAL_RANK"], env["CUDA_VISIBLE_DEVICES"]) == ("0", "6")


def test_a_virtual_worker_without_a_device_is_an_error() -> None:
    assert device_of(3, "") == "3"
    with pytest.raises(ValueError, match="no device for local rank 2"):
        device_of(2, "0,1")


def test_macros_touch_nothing_else() -> None:
    args = ("--rank=${local_rank}", "$$ ${other} $local_rank %(x)s", 5)
    assert with_macros(args, 3) == ("--rank=3", "$$ ${other} $local_rank %(x)s", 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", {0: 0, 1: 0, 2: 0}),
        ("3", {0: 3, 1: 3, 2: 3}),
        ("1:2,0:1", {0: 1, 1: 2, 2: 0}),
        ("10:3,2:1", {0: 0, 1: 0, 2: 1}),
    ],
)
def test_streams_by_rank(text: str, expected: dict[int, int]) -> None:
    assert to_map(Std.from_str(text), 3) == expected


@pytest.mark.parametrize("text", ["", "4", "x", "0:4", "10:4", "0:1,", "0=1"])
def test_streams_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a digit"):
        Std.from_str(text)
