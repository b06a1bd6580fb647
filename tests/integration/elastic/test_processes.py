"""What a worker inherits, and what ties it to the process that started it, on the main thread and off it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.elastic import RunResult, SignalException, WorkerState
from agentd.elastic.agent.server import SimpleElasticAgent
from agentd.procs.procfs import processes, read_environ
from agentd.procs.spawn import spawn
from tests.integration.elastic.rig import PlainRendezvous, Rig

Runner = Callable[[SimpleElasticAgent], RunResult]


def _run_here(agent: SimpleElasticAgent) -> RunResult:
    return agent.run()


def _run_in_a_thread(agent: SimpleElasticAgent) -> RunResult:
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(agent.run()))
    thread.start()
    thread.join()
    return results[0]


@pytest.fixture(params=[_run_here, _run_in_a_thread], ids=["main thread", "other thread"])
def run(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.param
    return runner


def test_an_agent_runs_on_any_thread(rig: Rig, run: Runner) -> None:
    agent = rig.shell("echo $RANK; [ $TORCHELASTIC_RESTART_COUNT = 1 ]", size=2, restarts=1)
    assert run(agent).state is WorkerState.SUCCEEDED
    assert rig.log(2, 1) == "11\n"


def test_workers_inherit_nothing_but_a_lifeline_and_an_empty_stdin(rig: Rig, run: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        run(rig.shell("ls -l /proc/$$/fd; cat"))
    targets = [line.split(" -> ")[1] for line in rig.log(1, 0).splitlines() if " -> " in line]
    logs = rig.logs / "round_1" / "0"
    pipe, *others = sorted(set(targets) - {"/dev/null", str(logs / "stdout.log"), str(logs / "stderr.log")})
    assert pipe.startswith("pipe:")
    assert not others


def untouched(status: str) -> bool:
    """Whether the masks of these lines are empty, but for the C library's own, which some makes set."""
    of_the_library = 1 << 31 | 1 << 32
    return all(int(line.split()[1], 16) & ~of_the_library == 0 for line in status.splitlines())


def test_workers_have_default_signals_whatever_the_agent_ignores(rig: Rig, run: Runner) -> None:
    former = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        run(rig.agent("grep", "^Sig[BI]", "/proc/self/status"))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR2, former)
    assert untouched(rig.log(1, 0))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_child_without_a_link_has_default_signals_too(tmp_path: Path, ignored: bool) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    try:
        argv = ["grep", "^Sig[BI]", "/proc/self/status"]
        child = spawn(argv, env=os.environ, stdout_fd=out, parent_death_signal=None)
        assert child.popen.wait() == 0
    finally:
        os.close(out)
        signal.signal(signal.SIGHUP, former)
    assert untouched((tmp_path / "out").read_text())


def test_each_worker_leads_a_session_of_its_own(rig: Rig, run: Runner) -> None:
    run(rig.shell("cut -d' ' -f1,5,6 /proc/$$/stat", size=2))
    for rank in (0, 1):
        assert len(set(rig.log(1, rank).split())) == 1


def test_a_missing_program_is_named_off_the_main_thread_too(rig: Rig) -> None:
    errors: list[BaseException] = []

    def run_it() -> None:
        try:
            rig.agent("/no/such/program", handler=PlainRendezvous()).run()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run_it)
    thread.start()
    thread.join()
    assert str(errors[0]) == "cannot start /no/such/program: No such file or directory"


HOST = """
import sys, threading
from pathlib import Path
from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, WorkerSpec
from agentd.procs.prctl import become_subreaper
from tests.integration.elastic.rig import PlainRendezvous

folder, script, where = sys.argv[1:]
if where == "subreaper":
    become_subreaper()
spec = WorkerSpec("w", 2, PlainRendezvous(), entrypoint="sh", args=("-c", script), max_restarts=0)
agent = LocalElasticAgent(
    spec, RoundLogsSpecs(folder), shutdown_timeout=5, token=Path(folder).name + "-host",
    owns_descendants=where == "subreaper",
)
if where == "thread":
    thread = threading.Thread(target=agent.run)
    thread.start()
    thread.join()
else:
    agent.run()
"""


def _host(folder: Path, script: str, where: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[3]
    env = {**os.environ, "FOLDER": str(folder), "PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, "-c", HOST, str(folder), script, where], env=env)


def _alive(marker: str) -> list[int]:
    """Processes whose environment or command line holds the marker."""
    found = []
    for stat in processes():
        try:
            command = Path(f"/proc/{stat.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if stat.state != "Z" and marker.encode() in command + read_environ(stat.pid):
            found.append(stat.pid)
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 60 s"
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_workers_and_what_they_started_die_when_their_agents_process_is_killed(
    tmp_path: Path, where: str
) -> None:
    marker = str(tmp_path)
    host = _host(tmp_path, 'sleep 1000 & touch "$FOLDER/up$RANK"; exec sleep 1000', where)
    try:
        _until(lambda: (tmp_path / "up0").exists() and (tmp_path / "up1").exists())
        host.kill()
        host.wait()
        _until(lambda: not _alive(marker))
    finally:
        host.kill()
        host.wait()


def test_a_daemon_without_token_session_or_parent_is_found_by_descent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    daemon = f'env -i /bin/sh -c "setsid sh -c \\"echo \\\\\\$\\\\\\$ >>{pids}; exec sleep 1000\\" & exit"'
    host = _host(tmp_path, f'{daemon}; while [ "$(wc -l <{pids})" != 2 ]; do sleep 0.01; done', "subreaper")
    try:
        assert host.wait(timeout=60) == 0
        daemons = [int(pid) for pid in pids.read_text().split()]
        assert len(daemons) == 2
        assert not [pid for pid in daemons if Path(f"/proc/{pid}").exists()]
    finally:
        host.kill()
        host.wait()


def test_a_signal_to_the_agents_process_ends_it_and_its_workers(tmp_path: Path) -> None:
    host = _host(tmp_path, 'touch "$FOLDER/up$RANK"; exec sleep 1000', "main")
    try:
        _until(lambda: (tmp_path / "up0").exists() and (tmp_path / "up1").exists())
        host.send_signal(signal.SIGTERM)
        assert host.wait(timeout=60) == 1
        assert SignalException.__name__
        assert not _alive(str(tmp_path))
    finally:
        host.kill()
        host.wait()
