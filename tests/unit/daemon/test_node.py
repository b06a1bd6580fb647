"""What GetNode says of a machine, also when its disk does not answer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agentd.api.types import GroupRef, Phase, RunRef
from agentd.daemon import node as daemon_node
from agentd.daemon.node import STATE_DISK_SLOW, NodeReporter
from agentd.procs.node import NodeFacts, gpu_count, listener_pid, look
from tests.support.waiting import PATIENCE_S, wait_until_async


class Groups:
    ending = False
    drain = None
    problems: Mapping[str, str] = {"JOURNAL_BEHIND": "slow"}

    def hub_of(self) -> tuple[RunRef, ...]:
        return ()

    def group_refs(self) -> tuple[GroupRef, ...]:
        return (GroupRef(run_id="r", incarnation=1, role="default", phase=Phase.RUNNING),)


def reporter(state_dir: Path) -> NodeReporter:
    return NodeReporter(
        Groups(),
        node_id="n",
        agent_uid="u",
        state_dir=str(state_dir),
        listening=(),
        advertised_address="h:1",
    )


@pytest.mark.asyncio
async def test_a_node_tells_who_it_is_and_how_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_node, "PATIENCE", PATIENCE_S)
    info = await reporter(tmp_path).info()
    assert (info.node_id, info.agent_uid, info.pid) == ("n", "u", os.getpid())
    assert info.hostname == socket.gethostname()
    assert info.cpus == len(os.sched_getaffinity(0))
    assert 0 < info.memory_available_bytes < info.memory_total_bytes
    assert 0 < info.state_dir_free_bytes <= info.state_dir_total_bytes
    assert 0 < info.agentd_resident_bytes < info.memory_total_bytes
    assert info.conditions == ("JOURNAL_BEHIND",)
    assert info.condition_details == {"JOURNAL_BEHIND": "slow"}
    assert [ref.run_id for ref in info.groups] == ["r"]


@pytest.fixture
def dead_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A disk that answers the first look only, until the test and its loop are over."""
    looks: list[str] = []
    over = threading.Event()

    def slow_look(directory: str) -> NodeFacts:
        looks.append(directory)
        if len(looks) > 1:
            over.wait(30)
        return look("/")

    monkeypatch.setattr(daemon_node, "look", slow_look)
    monkeypatch.setattr(daemon_node, "PATIENCE", PATIENCE_S)
    yield looks
    over.set()


@pytest.mark.asyncio
async def test_a_dead_disk_makes_the_facts_old_and_never_late(
    tmp_path: Path, dead_disk: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = reporter(tmp_path)
    first = await asked.info()
    assert STATE_DISK_SLOW not in first.conditions
    monkeypatch.setattr(daemon_node, "PATIENCE", 0.3)
    for _ in range(3):
        info = await asked.info()
        assert info.conditions == ("JOURNAL_BEHIND", STATE_DISK_SLOW)
        assert info.memory_total_bytes == first.memory_total_bytes
    # Whoever asks while one look hangs starts no other.
    await wait_until_async(lambda: len(dead_disk) == 2)


@pytest.mark.parametrize(
    ("devices", "environ", "count"),
    [
        (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"], {}, 2),
        (["null"], {}, 0),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "1"}, 1),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,GPU-c"}, 2),
    ],
    ids=["all", "none", "one-shown", "all-hidden", "minus-one", "cut-short", "uuids"],
)
def test_gpus_are_counted_as_cuda_would(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], environ: Mapping[str, str], count: int
) -> None:
    monkeypatch.setattr("agentd.procs.node.os.listdir", lambda path: devices)
    monkeypatch.setattr("agentd.procs.node.os.access", lambda path, mode: False)
    assert gpu_count(environ) == count


def test_the_holder_of_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listener_pid(port) == os.getpid()
    assert listener_pid(port) is None
