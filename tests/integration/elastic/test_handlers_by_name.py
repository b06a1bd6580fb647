"""Agents in processes of their own, on rendezvous handlers made by name: torch's dynamic one, and ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.utils.ports import HeldPort
from tests.conftest import REPO

PATIENCE_S = 110.0
TELL = (
    'echo "$RANK/$WORLD_SIZE at $MASTER_ADDR restart $TORCHELASTIC_RESTART_COUNT '
    '$TORCHELASTIC_USE_AGENT_STORE"'
)


class Node:
    """One agent in a process."""

    def __init__(self, folder: Path, params: dict[str, Any], script: str, size: int, restarts: int) -> None:
        self.logs = folder
        order = {"params": params, "logs": str(folder), "size": size, "restarts": restarts, "script": script}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.elastic.torch_agent", json.dumps(order)],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ends(self) -> dict[str, Any]:
        try:
            out, problems = self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, problems = self._process.communicate()
        assert self._process.returncode == 0, problems
        told: dict[str, Any] = json.loads(out)
        return told

    def said(self, round_: int, local_rank: int = 0) -> str:
        return (self.logs / f"round_{round_}" / str(local_rank) / "stdout.log").read_text()


def _params(backend: str, port: int, nodes: int, **options: Any) -> dict[str, Any]:
    return {
        "backend": backend,
        "endpoint": f"localhost:{port}",
        "run_id": "run",
        "min_nodes": nodes,
        "max_nodes": nodes,
        "local_addr": "localhost",
        **options,
    }


BACKENDS = [pytest.param("c10d", marks=pytest.mark.torch), "static"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_agent_restarts_its_workers_and_succeeds(backend: str, tmp_path: Path) -> None:
    script = f"{TELL}; [ $TORCHELASTIC_RESTART_COUNT = 1 ] || exit 3"
    port = HeldPort()
    try:
        node = Node(tmp_path, _params(backend, port.number, 1, rank=0), script, size=2, restarts=1)
        told = node.ends()
    finally:
        port.close()
    assert (told["state"], told["ranks"], told["round"], told["remaining"]) == ("SUCCEEDED", [0, 1], 2, 0)
    shared = backend == "c10d"
    assert node.said(2, 1) == f"1/2 at localhost restart 1 {shared}\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failure_of_one_agent_restarts_the_other_at_no_cost(backend: str, tmp_path: Path) -> None:
    fails_once = f"{TELL}; [ -e {tmp_path}/failed ] || {{ touch {tmp_path}/failed; exit 3; }}"
    waits = f"{TELL}; until [ -e {tmp_path}/failed ] && [ $AGENTD_ROUND = 2 ]; do sleep 0.05; done"
    port = HeldPort()
    try:
        nodes = [
            Node(tmp_path / str(rank), _params(backend, port.number, 2, rank=rank), script, 1, restarts=2)
            for rank, script in enumerate([waits, fails_once])
        ]
        told = [node.ends() for node in nodes]
    finally:
        port.close()
    assert [end["state"] for end in told] == ["SUCCEEDED", "SUCCEEDED"]
    assert [end["round"] for end in told] == [2, 2]
    assert [end["remaining"] for end in told] == [2, 1], "who restarts with another pays nothing"
    assert sorted(rank for end in told for rank in end["ranks"]) == [0, 1]


def test_an_agent_that_does_not_come_is_named(tmp_path: Path) -> None:
    port = HeldPort()
    try:
        node = Node(tmp_path, _params("static", port.number, 3, rank=0, timeout=1), "true", 1, 0)
        with pytest.raises(AssertionError, match="of 3 agents, missing are ranks 1, 2"):
            node.ends()
    finally:
        port.close()
