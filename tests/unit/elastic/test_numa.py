"""Which CPUs a worker gets, on machines made of files."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic import topology as topology_module
from agentd.elastic.numa import AffinityMode, NumaBindingError, NumaOptions, bound, cpus_for, visible_gpus
from agentd.elastic.topology import Gpu, Topology, cpu_set, read_topology

NODE, SOCKET = AffinityMode.NODE, AffinityMode.SOCKET
EXCLUSIVE, CORE_COMPLEX = AffinityMode.EXCLUSIVE, AffinityMode.CORE_COMPLEX

GPUS = ["0000:17:00.0", "0000:2a:00.0", "0000:ab:00.0", "0000:c1:00.0"]


def machine(root: Path, *, gpu_nodes: Iterable[int] = ()) -> Path:
    """Two sockets of two nodes; each node has two cores of two threads and one cache for each core.

    Node n has the CPUs 2n, 2n+1 and their siblings 8+2n, 9+2n, as Linux numbers them.
    """
    for node in range(4):
        first = 2 * node
        write(
            root,
            f"sys/devices/system/node/node{node}/cpulist",
            f"{first}-{first + 1},{first + 8}-{first + 9}",
        )
        for core in (first, first + 1):
            for cpu in (core, core + 8):
                folder = f"sys/devices/system/cpu/cpu{cpu}"
                write(root, f"{folder}/topology/physical_package_id", str(node // 2))
                write(root, f"{folder}/topology/thread_siblings_list", f"{core},{core + 8}")
                cache(root, cpu, 0, "1", "Data", str(cpu))
                cache(root, cpu, 1, "4", "Instruction", "0-15")
                cache(root, cpu, 2, "3", "Unified", f"{core},{core + 8}")
    write(root, "sys/devices/system/node/node4/cpulist", "")  # memory alone
    write(root, "sys/devices/system/node/possible", "0-4")
    for index, (address, node) in enumerate(zip(GPUS, gpu_nodes, strict=False)):
        write(root, f"sys/bus/pci/devices/{address}/numa_node", str(node))
        text = f"Model: \t\t NVIDIA\nGPU UUID: \t GPU-{index}a{index}b\nBus Type: \t PCIe\n"
        write(root, f"proc/driver/nvidia/gpus/{address}/information", text)
    return root


def cache(root: Path, cpu: int, index: int, level: str, kind: str, shared: str) -> None:
    folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    for name, text in (("level", level), ("type", kind), ("shared_cpu_list", shared)):
        write(root, f"{folder}/{name}", text)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def cpus(
    mode: AffinityMode,
    topology: Topology,
    local_rank: int,
    workers: int = 4,
    env: Mapping[str, str] | None = None,
    allowed: Iterable[int] = range(16),
) -> list[int]:
    env = {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(workers), **(env or {})}
    return sorted(cpus_for(mode, topology, local_rank, env, allowed))


# --- reading


def test_a_machine_is_read_from_its_files(tmp_path: Path) -> None:
    topology = read_topology(str(machine(tmp_path, gpu_nodes=[3, 0])))
    assert topology.nodes == {node: {2 * node, 2 * node + 1, 2 * node + 8, 2 * node + 9} for node in range(4)}
    assert [topology.sockets[cpu] for cpu in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert topology.cores[3] == topology.cores[11] == {3, 11}
    assert topology.caches[3] == {3, 11}
    assert topology.gpus == (Gpu(GPUS[0], "GPU-0a0b", 3), Gpu(GPUS[1], "GPU-1a1b", 0))


def test_a_machine_that_tells_nothing_is_empty(tmp_path: Path) -> None:
    assert read_topology(str(tmp_path)) == Topology(nodes={})


@pytest.mark.parametrize(("nodes", "expected"), [(1, 0), (4, None)])
def test_a_gpu_whose_node_is_unknown_is_on_the_only_one_there_is(
    tmp_path: Path, nodes: int, expected: int | None
) -> None:
    root = machine(tmp_path, gpu_nodes=[-1])
    for node in range(nodes, 4):
        write(root, f"sys/devices/system/node/node{node}/cpulist", "")
    assert read_topology(str(root)).gpus[0].node == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("", set()), ("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), (" 2 , 4-5\n", {2, 4, 5})]
)
def test_lists_of_cpus_are_read_as_the_kernel_writes_them(text: str, expected: set[int]) -> None:
    assert cpu_set(text) == expected


class FakeNvml(types.ModuleType):
    """The binding, old (bytes) or new (str)."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, old: bool, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.open = 0
        self._old = old
        self._driver = driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetPciInfo(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(busId=self._text(["00000000:17:00.0", "00000000:AB:00.0"][handle]))

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return self._text(f"GPU-{handle}")

    def _text(self, text: str) -> str | bytes:
        return text.encode() if self._old else text


@pytest.mark.parametrize("old", [True, False])
def test_nvml_tells_the_gpus_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    nvml = FakeNvml(old=old)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert topology_module._nvml_gpus() == [("0000:17:00.0", "GPU-0"), ("0000:ab:00.0", "GPU-1")]
    assert nvml.open == 0


def test_without_nvml_or_its_driver_the_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(old=False, driver=False))
    assert topology_module._nvml_gpus() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert topology_module._nvml_gpus() is None


# --- by GPU


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    """GPUs 0 and 1 on node 1, 2 on node 3, 3 on node 2."""
    return read_topology(str(machine(tmp_path, gpu_nodes=[1, 1, 3, 2])))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (NODE, [[2, 3, 10, 11], [2, 3, 10, 11], [6, 7, 14, 15], [4, 5, 12, 13]]),
        (SOCKET, [[0, 1, 2, 3, 8, 9, 10, 11]] * 2 + [[4, 5, 6, 7, 12, 13, 14, 15]] * 2),
        (EXCLUSIVE, [[2, 10], [3, 11], [6, 7, 14, 15], [4, 5, 12, 13]]),
        (CORE_COMPLEX, [[2, 10], [3, 11], [6, 14], [4, 12]]),
    ],
)
def test_each_mode_gives_its_share_near_the_gpu(
    topology: Topology, mode: AffinityMode, expected: list[list[int]]
) -> None:
    assert [cpus(mode, topology, rank) for rank in range(4)] == expected


def test_only_cpus_that_may_be_used_are_given(topology: Topology) -> None:
    assert cpus(NODE, topology, 0, allowed=[2, 3, 6]) == [2, 3]
    assert cpus(EXCLUSIVE, topology, 1, allowed=[2, 3, 6]) == [3]
    assert cpus(SOCKET, topology, 0, allowed=[0, 3, 6]) == [0, 3]
    # The complex with more CPUs left comes first.
    assert cpus(CORE_COMPLEX, topology, 0, allowed=[2, 3, 11]) == [3, 11]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        ("3, 1 ", [3, 1]),
        ("0,9,1", [0]),
        ("-1", []),
        ("1,-1,2", [1]),
        ("GPU-2a2b,GPU-0", [2, 0]),
        ("GPU-", []),
        ("none", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(
    topology: Topology, visible: str | None, expected: list[int]
) -> None:
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_gpus(topology, env) == tuple(topology.gpus[index] for index in expected)


def test_the_gpu_is_the_one_the_worker_will_see(topology: Topology) -> None:
    assert cpus(NODE, topology, 0, 2, {"CUDA_VISIBLE_DEVICES": "3,2"}) == [4, 5, 12, 13]
    assert cpus(NODE, topology, 1, 2, {"CUDA_VISIBLE_DEVICES": "3,2"}) == [6, 7, 14, 15]


def test_visible_gpus_share_the_node_among_themselves(topology: Topology) -> None:
    assert cpus(EXCLUSIVE, topology, 0, 1, {"CUDA_VISIBLE_DEVICES": "1"}) == [2, 3, 10, 11]


def test_with_virtual_local_ranks_each_worker_still_gets_a_share_of_its_own(topology: Topology) -> None:
    shares = [
        cpus(EXCLUSIVE, topology, rank, 4, {"CUDA_VISIBLE_DEVICES": str(rank), "LOCAL_RANK": "0"})
        for rank in range(4)
    ]
    assert shares == [[2, 10], [3, 11], [6, 7, 14, 15], [4, 5, 12, 13]]


def test_a_worker_without_a_gpu_among_others_with_is_an_error(topology: Topology) -> None:
    with pytest.raises(NumaBindingError, match=r"local rank 4 .*it has no GPU: 4 are visible"):
        cpus(NODE, topology, 4, 5)


def test_too_few_cores_for_all_is_an_error(topology: Topology) -> None:
    with pytest.raises(NumaBindingError, match="NUMA node 1 has 1 physical cores to use for 2 sharers"):
        cpus(EXCLUSIVE, topology, 0, allowed=[2, 10])


def test_a_gpu_whose_node_has_no_cpu_to_use_is_as_good_as_none(topology: Topology) -> None:
    assert cpus(NODE, topology, 0, allowed=[0, 1]) == [0, 1]


def test_a_slice_of_a_gpu_is_bound_by_turns(topology: Topology) -> None:
    assert cpus(NODE, topology, 0, 1, {"CUDA_VISIBLE_DEVICES": "MIG-5c9a"}) == [0, 1, 8, 9]


# --- without GPU


@pytest.fixture
def cpu_machine(tmp_path: Path) -> Topology:
    return read_topology(str(machine(tmp_path)))


def test_without_gpu_local_ranks_take_the_nodes_in_turn(cpu_machine: Topology) -> None:
    given_cpus = [cpus(NODE, cpu_machine, rank, 5) for rank in range(5)]
    assert given_cpus == [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15], [0, 1, 8, 9]]


def test_without_gpu_only_nodes_that_may_be_used_take_part(cpu_machine: Topology) -> None:
    assert [cpus(NODE, cpu_machine, rank, 3, allowed=[2, 3, 6]) for rank in range(3)] == [[2, 3], [6], [2, 3]]


def test_a_machine_without_nodes_is_a_clear_error() -> None:
    with pytest.raises(NumaBindingError, match="no NUMA node"):
        cpus(NODE, Topology(nodes={}), 0)


@given(st.integers(1, 8), st.sets(st.integers(0, 15), min_size=1))
def test_exclusive_shares_never_overlap_and_whole_cores_stay_whole(
    tmp_path_factory: pytest.TempPathFactory, workers: int, allowed: set[int]
) -> None:
    topology = _cpu_machine(tmp_path_factory)
    try:
        shares = [set(cpus(EXCLUSIVE, topology, rank, workers, allowed=allowed)) for rank in range(workers)]
    except NumaBindingError:
        cores = {frozenset(topology.cores[cpu] & allowed) for cpu in allowed}
        nodes = [node for node in topology.nodes.values() if node & allowed]
        fewest = min(sum(core <= node for core in cores) for node in nodes)
        assert fewest < -(-workers // len(nodes))
        return
    for rank, share in enumerate(shares):
        assert share
        assert share <= allowed
        assert all(topology.cores[cpu] & allowed <= share for cpu in share)
        assert not any(share & other for other in shares[:rank])


@given(st.sampled_from(AffinityMode), st.integers(0, 7), st.sets(st.integers(0, 20)))
def test_whatever_may_be_used_the_answer_is_some_of_it_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, mode: AffinityMode, rank: int, allowed: set[int]
) -> None:
    try:
        found = cpus(mode, _cpu_machine(tmp_path_factory), rank, 8, allowed=allowed)
    except NumaBindingError:
        return
    assert found
    assert allowed.issuperset(found)


_made: list[Topology] = []


def _cpu_machine(factory: pytest.TempPathFactory) -> Topology:
    """Made once for all examples."""
    if not _made:
        _made.append(read_topology(str(machine(factory.mktemp("machine")))))
    return _made[0]


# --- options


def test_no_options_bind_nothing_and_read_nothing() -> None:
    def unread() -> Topology:
        raise AssertionError("read")

    with bound(None, 0, {}, topology=unread) as given_cpus:
        assert given_cpus is None


def test_a_failed_binding_is_an_error_that_tells_the_next_step() -> None:
    with pytest.raises(NumaBindingError, match="should_fall_back_if_binding_fails") as caught:
        with bound(NumaOptions(NODE), 3, {}, topology=lambda: Topology(nodes={})):
            raise AssertionError("started")
    assert caught.value.local_rank == 3


def test_a_failed_binding_falls_back_with_a_warning_if_it_should(caplog: pytest.LogCaptureFixture) -> None:
    options = NumaOptions(NODE, should_fall_back_if_binding_fails=True)
    with caplog.at_level(logging.WARNING):
        with bound(options, 3, {}, topology=lambda: Topology(nodes={})) as given_cpus:
            assert given_cpus is None
    assert "local rank 3 starts unbound: the kernel tells of no NUMA node" in caplog.text


def test_an_unknown_mode_is_a_clear_error() -> None:
    with pytest.raises(
        NumaBindingError, match="no affinity mode 'galaxy', only node, socket, exclusive, core-complex"
    ):
        with bound(NumaOptions("galaxy"), 0, {}):  # type: ignore[arg-type]
            pass


@pytest.mark.torch
def test_modes_and_options_are_torchs() -> None:
    from torch.numa import binding

    assert {mode.name: mode.value for mode in AffinityMode} == {
        mode.name: mode.value for mode in binding.AffinityMode
    }
    theirs = binding.NumaOptions(affinity_mode=binding.AffinityMode.NODE)
    assert theirs.should_fall_back_if_binding_fails == NumaOptions(NODE).should_fall_back_if_binding_fails
