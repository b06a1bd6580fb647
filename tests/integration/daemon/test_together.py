"""Daemons with each other, and what remains when one is killed in the worst way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc

from agentd.daemon.exits import ExitCode
from agentd.v1 import agent_service_pb2 as pb
from agentd.v1 import rendezvous_service_pb2 as hub_pb
from agentd.v1 import run_pb2
from agentd.v1.rendezvous_service_pb2_grpc import RendezvousServiceStub
from tests.integration.daemon.rig import (
    CALL_S,
    END_S,
    Daemon,
    a_run,
    calling,
    running,
    script,
    wait_for_phase,
)
from tests.support.fleet import is_gone
from tests.support.waiting import wait_until

TELLS_ITS_PLACE = """
import os
names = 'RANK', 'WORLD_SIZE', 'GROUP_RANK', 'MASTER_ADDR', 'MASTER_PORT'
print(*map(os.environ.get, names), flush=True)
"""


def output(daemon: Daemon) -> str:
    return "".join(path.read_text() for path in sorted((daemon.state_dir / "runs").rglob("stdout.log")))


def reap(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentd", "reap", "--state-dir", str(daemon.state_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_two_daemons_are_one_run_and_the_hub_tells_the_whole(folder: Path) -> None:
    program = script(folder, TELLS_ITS_PLACE)
    flags = ("--listen", "127.0.0.1:0", "--node-id")
    with running(folder / "a", *flags, "a") as a, running(folder / "b", *flags, "b") as b:
        nodes = [a.targets[0], b.targets[0]]
        with calling(nodes[0]) as first, calling(nodes[1]) as second:
            request = a_run("r", program, count=2, nodes=nodes)
            request.node_name = nodes[0]
            answer = first.Run(request, timeout=CALL_S).status
            assert answer.hub_address == nodes[0]
            request.node_name, request.hub_address = nodes[1], answer.hub_address
            request.incarnation = answer.incarnation
            second.Run(request, timeout=CALL_S)
            for agent in (first, second):
                wait_for_phase(agent, "r", run_pb2.PHASE_SUCCEEDED)
            with grpc.insecure_channel(nodes[0]) as channel:
                stub: Any = RendezvousServiceStub(channel)
                whole = stub.Describe(hub_pb.DescribeRequest(run_id="r"), timeout=CALL_S)
                assert {node.node_id for node in whole.status.nodes} == {"a", "b"}
                assert whole.spec.roles[0].command.entrypoint == str(program)
                again = stub.Terminate(hub_pb.TerminateRequest(run_id="r"), timeout=CALL_S)
                assert again.status.phase == run_pb2.PHASE_SUCCEEDED
    places = [line.split() for line in (output(a) + output(b)).splitlines()]
    assert [place[:3] for place in places] == [
        ["0", "4", "0"],
        ["1", "4", "0"],
        ["2", "4", "1"],
        ["3", "4", "1"],
    ]
    assert len({tuple(place[3:]) for place in places}) == 1


def test_a_shutdown_of_one_node_leaves_the_run_to_the_others(folder: Path) -> None:
    program = script(folder, "import time\ntime.sleep(600)\n")
    flags = ("--listen", "127.0.0.1:0", "--node-id")
    with running(folder / "a", *flags, "a") as a, running(folder / "b", *flags, "b") as b:
        nodes = [a.targets[0], b.targets[0]]
        with calling(nodes[0]) as first, calling(nodes[1]) as second:
            request = a_run("r", program, nodes=nodes)
            request.spec.rendezvous.min_members = 1
            request.spec.rendezvous.max_members = 2
            request.node_name = nodes[0]
            answer = first.Run(request, timeout=CALL_S).status
            request.node_name, request.hub_address = nodes[1], answer.hub_address
            request.incarnation = answer.incarnation
            second.Run(request, timeout=CALL_S)
            wait_until(lambda: members(first) == 2, END_S)
            b.signal()
            assert b.ended() == ExitCode.OK
            wait_until(lambda: members(first) == 1, END_S)
            wait_for_phase(first, "r", run_pb2.PHASE_RUNNING)


def members(agent: Any) -> int:
    """Groups of the run that have running workers in the newest round."""
    run = agent.Status(pb.StatusRequest(run_id="r"), timeout=CALL_S).runs[0]
    groups = [group for node in run.nodes for group in node.groups]
    return sum(group.round == run.round > 0 and group.phase == run_pb2.PHASE_RUNNING for group in groups)


def test_reap_of_a_directory_no_agentd_ever_had_says_so_and_makes_none(folder: Path) -> None:
    wrong = folder / "mistyped"
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "reap", "--state-dir", str(wrong)],
        capture_output=True, text=True, timeout=END_S, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.OK
    assert f"no agentd has kept its state in {wrong}" in done.stdout
    assert not wrong.exists()


def test_reap_ends_what_nobody_else_can_and_touches_no_stranger(folder: Path) -> None:
    program = script(folder, "import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    stranger = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.DEVNULL)
    try:
        with running(folder) as daemon, calling(daemon.targets[0]) as agent:
            agent.Run(a_run("r", program, count=2), timeout=CALL_S)
            wait_for_phase(agent, "r", run_pb2.PHASE_RUNNING)
            run = agent.Status(pb.StatusRequest(run_id="r"), timeout=CALL_S).runs[0]
            (group,) = run.nodes[0].groups
            pids = [worker.pid for worker in group.workers]
            refused = reap(daemon)
            assert refused.returncode == ExitCode.ALREADY_RUNNING
            assert f"pid {daemon.process.pid}" in refused.stderr
            # A frozen host notices nothing, so the workers of the dead agentd go on.
            os.kill(group.host_pid, signal.SIGSTOP)
            daemon.signal(signal.SIGKILL)
            daemon.ended()
        done = reap(daemon)
        assert done.returncode == ExitCode.OK, done.stderr
        assert "role default" in done.stdout
        assert all(is_gone(pid) for pid in [group.host_pid, *pids])
        assert stranger.poll() is None
        assert "nothing was left" in reap(daemon).stdout
    finally:
        stranger.kill()
        stranger.wait(END_S)
