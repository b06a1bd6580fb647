"""How agentd goes away: shutdown, at once, and what does not make it go."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from agentd.api.errors import AgentdEnding
from agentd.api.errwire import from_rpc_error
from agentd.daemon.exits import ExitCode
from agentd.groups.reap import reap
from agentd.v1 import agent_service_pb2 as pb
from agentd.v1 import run_pb2
from tests.integration.daemon.rig import (
    CALL_S,
    END_S,
    Daemon,
    a_run,
    calling,
    ending,
    health_of,
    is_serving,
    phase_of,
    running,
    script,
    wait_for_phase,
)
from tests.support.fleet import is_gone
from tests.support.waiting import wait_until

EACH_S = 0.001
"""Between two signals: a process that only hears them does nothing else."""
OBEDIENT = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"
SAVES_ITS_WORK = """
import pathlib, signal, sys, time
def save(*_):
    print('saving', flush=True)
    while not pathlib.Path('go').exists():
        time.sleep(0.01)
    print('saved', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print('up', flush=True)
time.sleep(600)
"""


def output(agent: Any, run_id: str) -> bytes:
    answers = agent.Logs(pb.LogsRequest(run_id=run_id), timeout=CALL_S)
    return b"".join(answer.chunk.data for answer in answers)


def start(agent: Any, folder: Path, program: str, *, grace_s: int = 60) -> list[int]:
    """A run of two workers that are up; their pids and the host's."""
    agent.Run(a_run("r", script(folder, program), grace_s=grace_s, count=2), timeout=CALL_S)
    wait_for_phase(agent, "r", run_pb2.PHASE_RUNNING)
    wait_until(lambda: output(agent, "r").count(b"up\n") == 2, END_S)
    run = agent.Status(pb.StatusRequest(run_id="r"), timeout=CALL_S).runs[0]
    (group,) = run.nodes[0].groups
    return [group.host_pid, *(worker.pid for worker in group.workers)]


def test_a_shutdown_tells_everybody_and_lets_workers_finish(folder: Path) -> None:
    with (
        running(folder) as daemon,
        calling(daemon.targets[0]) as agent,
        health_of(daemon.targets[0]) as health,
    ):
        pids = start(agent, folder, SAVES_ITS_WORK)
        assert is_serving(health)
        assert is_serving(health, "agentd.v1.AgentService")
        assert is_serving(health, "agentd.run/r/default")
        watched_health = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=END_S)
        assert next(watched_health).status == health_pb2.HealthCheckResponse.SERVING
        watch = agent.Watch(pb.WatchRequest(run_id="r"), timeout=END_S)
        assert next(watch).HasField("status")
        logs = agent.Logs(pb.LogsRequest(run_id="r", follow=True), timeout=END_S)
        next(logs)

        daemon.signal()
        assert next(watched_health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for stream in (watch, logs):
            last = list(stream)[-1]
            assert last.end.cause == pb.STREAM_END_CAUSE_AGENTD_ENDING
        with pytest.raises(grpc.RpcError) as caught:
            agent.Run(a_run("other", script(folder, OBEDIENT)), timeout=CALL_S)
        assert isinstance(from_rpc_error(caught.value, "n"), AgentdEnding)  # type: ignore[arg-type]
        assert agent.GetNode(pb.GetNodeRequest(), timeout=CALL_S).ending

        late = agent.Watch(pb.WatchRequest(run_id="r"), timeout=END_S)
        assert next(late).HasField("status")
        (folder / "go").touch()
        answers = list(late)
        assert answers[-1].HasField("end")
        assert daemon.ended() == ExitCode.OK
        # Of a stream that was opened during the shutdown, how the run ended is seen too.
        assert any(answer.status.phase == run_pb2.PHASE_STOPPED for answer in answers)
    assert all(is_gone(pid) for pid in pids)
    logs_root = daemon.state_dir / "runs"
    written = [path.read_text() for path in logs_root.rglob("stdout.log")]
    assert written == ["up\nsaving\nsaved\n"] * 2


def test_a_second_signal_ends_everything_at_once(folder: Path) -> None:
    with running(folder) as daemon, calling(daemon.targets[0]) as agent:
        pids = start(agent, folder, SAVES_ITS_WORK, grace_s=600)
        daemon.signal()
        daemon.event("shutting down")
        wait_until(lambda: output(agent, "r").count(b"saving\n") == 2, END_S)
        started = time.monotonic()
        daemon.signal(signal.SIGINT)
        assert daemon.ended() == ExitCode.FORCED
        assert time.monotonic() - started < 15
        wait_until(lambda: all(is_gone(pid) for pid in pids), END_S)


def test_a_shutdown_grace_of_the_operator_bounds_the_runs_own(folder: Path) -> None:
    flags = ("--listen", "127.0.0.1:0", "--shutdown-grace", "0.5")
    with running(folder, *flags) as daemon, calling(daemon.targets[0]) as agent:
        pids = start(agent, folder, SAVES_ITS_WORK, grace_s=600)
        daemon.signal()
        assert daemon.ended() == ExitCode.OK
        assert all(is_gone(pid) for pid in pids)


def test_a_hangup_stops_nothing(folder: Path) -> None:
    with (
        running(folder) as daemon,
        calling(daemon.targets[0]) as agent,
        health_of(daemon.targets[0]) as health,
    ):
        start(agent, folder, OBEDIENT)
        daemon.signal(signal.SIGHUP)
        daemon.event("hangup ignored")
        assert is_serving(health)
        assert phase_of(agent, "r") == run_pb2.PHASE_RUNNING


def test_a_handover_ends_streams_with_a_last_message_and_leaves_host_and_workers(folder: Path) -> None:
    with running(folder) as daemon:
        with calling(daemon.targets[0]) as agent:
            pids = start(agent, folder, OBEDIENT)
            watch = agent.Watch(pb.WatchRequest(run_id="r"), timeout=END_S)
            assert next(watch).HasField("status")
            daemon.signal(signal.SIGUSR2)
            assert list(watch)[-1].end.cause == pb.STREAM_END_CAUSE_AGENTD_ENDING
        assert daemon.ended() == ExitCode.OK
        assert not any(is_gone(pid) for pid in pids)
    (left,) = reap(str(daemon.state_dir), 0.5)
    assert set(left.pids) == set(pids)


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGHUP])
def test_a_wish_that_comes_before_agentd_can_listen_is_not_its_end(
    folder: Path, signum: signal.Signals
) -> None:
    # It waits here for its settings, in its first moments.
    settings = folder / "settings.toml"
    os.mkfifo(settings)
    flags = ("--listen", "127.0.0.1:0", "--config", str(settings))
    with ending(Daemon(folder / "n", flags)) as daemon:
        with settings.open("w"):
            daemon.signal(signum)
            wait_until(lambda: not pending(daemon.process.pid, signum))
        if signum is signal.SIGUSR2:
            assert daemon.ended() == 0
            assert "handing over" in daemon.said()
        else:
            daemon.serving()


def pending(pid: int, signum: int) -> bool:
    """Whether the kernel has yet to deliver the signal."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [line.split()[1] for line in status if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(int(mask, 16) >> (signum - 1) & 1 for mask in masks)


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGHUP])
def test_a_handover_that_is_asked_for_to_the_last_moment_still_ends_well(
    folder: Path, signum: signal.Signals
) -> None:
    with running(folder) as daemon:
        daemon.signal(signal.SIGUSR2)
        daemon.event("handing over")

        deadline = time.monotonic() + END_S
        while daemon.process.poll() is None and time.monotonic() < deadline:
            daemon.signal(signum)
            time.sleep(EACH_S)
        assert daemon.ended() == ExitCode.OK


def test_kill_9_of_agentd_in_mode_stop_ends_its_workers_and_leaves_nothing(folder: Path) -> None:
    flags = ("--listen", "127.0.0.1:0", "--host-mode", "stop")
    with running(folder, *flags) as daemon, calling(daemon.targets[0]) as agent:
        pids = start(agent, folder, OBEDIENT)
        os.kill(daemon.process.pid, signal.SIGKILL)
        wait_until(lambda: all(is_gone(pid) for pid in pids), END_S)


def test_the_lifeline_is_held_by_agentd_alone(folder: Path) -> None:
    life_read, life_write = os.pipe()
    try:
        flags = ("--listen", "127.0.0.1:0", "--lifeline-fd", str(life_read))
        with ending(Daemon(folder, flags, pass_fds=(life_read,))) as daemon:
            with calling(daemon.serving().targets[0]) as agent:
                pids = start(agent, folder, OBEDIENT)
                pipe = os.readlink(f"/proc/self/fd/{life_read}")
                assert pipe in links(daemon.process.pid)
                assert not any(pipe in links(pid) for pid in pids)
                os.close(life_write)
                life_write = -1
                assert daemon.ended() == ExitCode.OK
                assert all(is_gone(pid) for pid in pids)
    finally:
        os.close(life_read)
        if life_write >= 0:
            os.close(life_write)


def links(pid: int) -> list[str]:
    """Where the descriptors of a process lead."""
    return [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
