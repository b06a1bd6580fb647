"""Tensors go into function workers and come out of them through shared memory."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.multiprocessing import RoundLogsSpecs, start_processes


def fill(rank: int, shared: Any) -> Any:
    """Write into what is shared, and return something new."""
    torch: Any = importlib.import_module("torch")
    shared[rank] = rank + 1
    return {"mine": torch.full((1000,), float(rank)), "old": torch.arange(1_000_000)}


@pytest.mark.torch
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_tensors_are_shared_with_workers_and_outlive_them(tmp_path: Path, method: str) -> None:
    torch: Any = importlib.import_module("torch")
    importlib.import_module("torch.multiprocessing")  # registers how tensors are sent
    # A process that has used OpenMP's threads cannot use them in a forked child.
    torch.set_num_threads(1)
    shared = torch.zeros(2).share_memory_()
    envs = {rank: {"AGENTD_ROUND": "1", "OMP_NUM_THREADS": "1"} for rank in range(2)}
    args = {rank: (rank, shared) for rank in range(2)}
    context = start_processes("t", fill, args, envs, RoundLogsSpecs(str(tmp_path)), start_method=method)
    try:
        result = context.wait(100)
    finally:
        context.close()
    assert result is not None
    assert not result.failures
    assert shared.tolist() == [1.0, 2.0]
    for rank, value in result.return_values.items():
        assert value["mine"].tolist() == [float(rank)] * 1000
        assert int(value["old"].sum()) == 499_999_500_000
