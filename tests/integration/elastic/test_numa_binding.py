"""Binding on the machine at hand: the child has the CPUs, the thread has its own back."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading

import pytest

from agentd.elastic.numa import AffinityMode, NumaOptions, bound
from agentd.elastic.topology import Topology, read_topology

SHOW = "import os; print(sorted(os.sched_getaffinity(0)))"


def child_cpus() -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, timeout=60, check=True
    )
    shown: list[int] = ast.literal_eval(done.stdout)
    return shown


def one_cpu() -> Topology:
    """A machine whose only node is one CPU that this test may use."""
    return Topology(nodes={0: frozenset({min(os.sched_getaffinity(0))})})


@pytest.mark.parametrize("mode", AffinityMode)
def test_on_this_machine_every_mode_gives_cpus_that_may_be_used(mode: AffinityMode) -> None:
    before = os.sched_getaffinity(0)
    with bound(NumaOptions(mode), 0, {"LOCAL_WORLD_SIZE": "1"}) as cpus:
        assert cpus
        assert cpus <= before
        assert os.sched_getaffinity(0) == cpus
    assert os.sched_getaffinity(0) == before


def test_this_machine_is_read_whole() -> None:
    topology = read_topology()
    assert os.sched_getaffinity(0) <= frozenset().union(*topology.nodes.values())
    for cpu in os.sched_getaffinity(0):
        assert cpu in topology.cores[cpu]
        assert cpu in topology.caches[cpu]
        assert cpu in topology.sockets


def test_a_child_started_inside_inherits_the_cpus_and_the_thread_gets_its_own_back() -> None:
    before = os.sched_getaffinity(0)
    with bound(NumaOptions(AffinityMode.NODE), 0, {}, topology=one_cpu) as cpus:
        assert child_cpus() == sorted(cpus or ())
    assert os.sched_getaffinity(0) == before
    assert child_cpus() == sorted(before)


def test_the_thread_gets_its_cpus_back_when_the_start_fails() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(FileNotFoundError), bound(NumaOptions(AffinityMode.NODE), 0, {}, topology=one_cpu):
        subprocess.Popen(["/no/such/program"])
    assert os.sched_getaffinity(0) == before


def test_other_threads_keep_their_cpus() -> None:
    bound_now, looked = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        assert bound_now.wait(10)
        seen.append(os.sched_getaffinity(0))
        looked.set()

    thread = threading.Thread(target=other)
    thread.start()
    before = os.sched_getaffinity(0)
    with bound(NumaOptions(AffinityMode.NODE), 0, {}, topology=one_cpu):
        bound_now.set()
        assert looked.wait(10)
    thread.join()
    assert seen == [before]


def test_cpus_the_kernel_refuses_are_an_error_or_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """As when a cpuset shrinks between reading and binding."""
    absent = Topology(nodes={0: frozenset({100_000})})
    real, calls = os.sched_getaffinity, iter([frozenset({100_000})])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: next(calls, None) or real(pid))
        options = NumaOptions(AffinityMode.NODE, should_fall_back_if_binding_fails=True)
        with bound(options, 0, {}, topology=lambda: absent) as cpus:
            assert cpus is None
    assert "the kernel refuses the CPUs [100000]" in caplog.text


@pytest.mark.torch
def test_torchs_own_options_serve() -> None:
    from torch.numa import binding

    options = binding.NumaOptions(affinity_mode=binding.AffinityMode.SOCKET)
    with bound(options, 0, {}, topology=one_cpu) as cpus:
        assert cpus == one_cpu().nodes[0]


@pytest.mark.gpu
def test_a_worker_is_bound_to_the_node_of_its_gpu() -> None:
    topology = read_topology()
    assert topology.gpus
    node = topology.gpus[0].node
    assert node is not None
    before = os.sched_getaffinity(0)
    with bound(NumaOptions(AffinityMode.NODE), 0, {"CUDA_VISIBLE_DEVICES": "0"}) as cpus:
        assert cpus == topology.nodes[node] & before
