"""Stop: what workers see, what is gone afterwards, and what is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.fleet import Controller, Fleet, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

# Notes its pid and each signal; ends on SIGTERM after `linger` seconds, or never when that is negative.
STUBBORN = (
    "import os, pathlib, signal, sys, time",
    "folder, linger = pathlib.Path(sys.argv[1]), float(sys.argv[2])",
    "def on_term(signum, frame):",
    "    (folder / f'term-{os.getpid()}').write_text(str(time.time()))",
    "    if linger >= 0:",
    "        time.sleep(linger)",
    "        (folder / f'saved-{os.getpid()}').touch()",
    "        sys.exit(0)",
    "signal.signal(signal.SIGTERM, on_term)",
    "(folder / f'pid-{os.getpid()}').touch()",
    "while True: time.sleep(1)",
)


def pids(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def all_up(folder: Path, count: int) -> list[int]:
    """The pids once there are `count`, else none."""
    found = pids(folder)
    return found if len(found) == count else []


def start(nodes: Fleet, folder: Path, *arguments: str, run_id: str = "r", workers: int = 2) -> list[int]:
    """A detached run of the stubborn program; its pids once all are up."""
    folder.mkdir(exist_ok=True)
    script = write_script(folder.parent / "stubborn.py", *STUBBORN)
    done = agentctl(
        "run", "--detach", "--nodes", nodes.targets(), "--nproc-per-node", str(workers), "--run-id", run_id,
        *arguments[:-1], str(script), str(folder), arguments[-1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return wait_until(lambda: all_up(folder, workers * len(nodes.nodes)), 60)


def test_workers_see_sigterm_and_have_their_grace(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        workers = start(nodes, folder, "--stop-grace", "20", "1.0")
        assert agentctl("stop", "r", "--nodes", nodes.targets()).returncode == 0
        wait_until(lambda: nodes.phase("r") == "PHASE_STOPPED", 60)
    assert all(is_gone(pid) for pid in workers)
    assert len(list(folder.glob("saved-*"))) == 4


def test_sigkill_comes_after_the_grace_and_a_second_stop_shortens_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        workers = start(nodes, folder, "--stop-grace", "600", "-1")
        assert agentctl("stop", "r", "--nodes", nodes.targets()).returncode == 0
        wait_until(lambda: len(list(folder.glob("term-*"))) == 2, 60)
        assert nodes.phase("r") == "PHASE_STOPPING"
        assert not any(is_gone(pid) for pid in workers)

        again = agentctl("stop", "r", "--nodes", nodes.targets(), "--stop-grace", "0.5")
        assert again.returncode == 0, again.stderr
        wait_until(lambda: nodes.phase("r") == "PHASE_STOPPED", 60)
        assert all(is_gone(pid) for pid in workers)
        assert len(list(folder.glob("term-*"))) == 2


def test_grandchildren_of_a_shell_wrapper_go_too_and_strangers_stay(tmp_path: Path) -> None:
    note = tmp_path / "grandchildren"
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(
        "#!/bin/bash\n"
        "sleep 1000 & echo $! >> $1\n"
        "setsid sleep 1000 & echo $! >> $1\n"
        "(nohup sleep 1000 & echo $! >> $1)\n"
        "echo ready >> $1\nwait\n"
    )
    wrapper.chmod(0o755)
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        with fleet(tmp_path, "a") as nodes:
            done = agentctl(
                "run", "--detach", "--nodes", nodes.targets(), "--run-id", "r", "--stop-grace", "5",
                "--no-python", str(wrapper), str(note),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            wait_until(lambda: note.exists() and "ready" in note.read_text(), 60)
            children = [int(line) for line in note.read_text().split() if line.isdigit()]
            assert len(children) == 3
            assert not any(is_gone(pid) for pid in children)
            assert agentctl("stop", "r", "--nodes", nodes.targets()).returncode == 0
            wait_until(lambda: nodes.phase("r") == "PHASE_STOPPED", 60)
            assert all(is_gone(pid) for pid in children)
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_stop_during_rendezvous(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "import time", "time.sleep(1000)")
    with fleet(tmp_path, "a") as nodes:
        started = agentctl(
            "run", "--detach", "--nodes", nodes.targets(), "--nnodes", "2", "--run-id", "r", str(script)
        )
        assert started.returncode == 0, started.stderr
        wait_until(lambda: nodes.phase("r") == "PHASE_RENDEZVOUS", 60)
        assert agentctl("stop", "r", "--nodes", nodes.targets()).returncode == 0
        wait_until(lambda: nodes.phase("r") == "PHASE_STOPPED", 60)


def test_stop_during_restart_ends_stopped_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        workers = start(nodes, folder, "--max-restarts", "3", "--stop-grace", "600", "-1")
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: nodes.phase("r") == "PHASE_RESTARTING", 60)
        stopped = agentctl("stop", "r", "--nodes", nodes.targets(), "--stop-grace", "0.5")
        assert stopped.returncode == 0, stopped.stderr
        wait_until(lambda: nodes.phase("r") == "PHASE_STOPPED", 60)
        assert all(is_gone(pid) for pid in pids(folder))
        assert len(pids(folder)) == 2


def test_stop_of_a_finished_and_of_an_unknown_run(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", "pass")
    with fleet(tmp_path, "a") as nodes:
        assert agentctl("run", "--nodes", nodes.targets(), "--run-id", "r", str(script)).returncode == 0
        finished = agentctl("stop", "r", "--nodes", nodes.targets())
        assert finished.returncode == 0, finished.stderr
        assert nodes.phase("r") == "PHASE_SUCCEEDED"
        unknown = agentctl("stop", "nobody", "--nodes", nodes.targets())
        assert unknown.returncode != 0
        assert "nobody" in unknown.stderr
        assert "Traceback" not in unknown.stderr


def test_ctrl_c_once_stops_with_grace_and_twice_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    script = write_script(tmp_path / "stubborn.py", *STUBBORN)
    with fleet(tmp_path, "a") as nodes:
        common = ["run", "--nodes", nodes.targets(), "--stop-grace", "600", "--run-id"]
        with Controller(*common, "once", str(script), str(folder), "0.5", root=tmp_path) as run:
            wait_until(lambda: pids(folder), 60)
            run.send(signal.SIGINT)
            code = run.wait(30)
        assert nodes.phase("once") == "PHASE_STOPPED"
        assert code == 130, run.err
        assert len(list(folder.glob("saved-*"))) == 1

        before = set(pids(folder))
        with Controller(*common, "twice", str(script), str(folder), "-1", root=tmp_path) as run:
            (worker,) = wait_until(lambda: set(pids(folder)) - before, 60)
            run.send(signal.SIGINT)
            wait_until((folder / f"term-{worker}").exists, 60)
            run.send(signal.SIGINT)
            assert run.wait(30) != 0
        wait_until(lambda: nodes.phase("twice") == "PHASE_STOPPED", 60)
        assert is_gone(worker)


def test_losing_the_controller_or_its_terminal_loses_nothing(tmp_path: Path) -> None:
    script = write_script(
        tmp_path / "s.py", "import pathlib, sys, time",
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)", "sys.exit(7)",
    )  # fmt: skip
    end = tmp_path / "end"
    with fleet(tmp_path, "a") as nodes:
        command = ["run", "--nodes", nodes.targets(), "--run-id", "r", str(script), str(end)]
        for signum in (signal.SIGHUP, signal.SIGKILL):
            with Controller(*command, root=tmp_path) as run:
                wait_until(lambda: nodes.workers("r"), 60)
                run.send(signum)
                run.wait(30)
        (worker,) = nodes.workers("r")
        with Controller("wait", "r", "--nodes", nodes.targets(), root=tmp_path) as waiting:
            assert [one["pid"] for one in nodes.workers("r")] == [worker["pid"]]
            end.touch()
            assert waiting.wait(30) == 7


def test_drain_ends_runs_with_their_grace_and_the_daemon_with_status_0(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        workers = start(nodes, folder, "--stop-grace", "20", "0.5")
        assert nodes["a"].stop() == 0
    assert all(is_gone(pid) for pid in workers)
    assert len(list(folder.glob("saved-*"))) == 2


@pytest.mark.parametrize("what", ["agentd", "host"])
def test_nothing_is_orphaned_when_a_process_above_the_workers_is_killed(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path) as nodes:
        nodes.start("a", "--host-mode", "stop")
        workers = start(nodes, folder, "--stop-grace", "1", "0")
        if what == "agentd":
            nodes["a"].kill()
        else:
            status = nodes.status("r")
            os.kill(int(status["nodes"][0]["groups"][0]["host_pid"]), signal.SIGKILL)
            wait_until(lambda: nodes.phase("r") == "PHASE_FAILED", 60)
        wait_until(lambda: all(is_gone(pid) for pid in workers), 60)


def test_reap_ends_what_a_dead_daemon_left(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        workers = start(nodes, folder, "--stop-grace", "600", "-1")
        hosts = [group["host_pid"] for group in nodes.status("r")["nodes"][0]["groups"]]
        for host in hosts:  # frozen, so that it cannot stop its workers
            os.kill(int(host), signal.SIGSTOP)
        nodes["a"].kill()
        agentd = Path(sys.executable).parent / "agentd"
        reaped = subprocess.run(
            [agentd, "reap", "--state-dir", nodes["a"].state_dir], capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert reaped.returncode == 0, reaped.stderr
        wait_until(lambda: all(is_gone(pid) for pid in [*workers, *hosts]), 60)


def test_a_standalone_run_leaves_nothing_when_its_controller_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    script = write_script(tmp_path / "stubborn.py", *STUBBORN)
    flags = ("--nproc-per-node", "2", "--stop-grace", "1")
    with tempfile.TemporaryDirectory() as state:  # a short path, which holds the socket too
        monkeypatch.setenv("XDG_STATE_HOME", state)
        with Controller("run", "--standalone", *flags, str(script), str(folder), "-1", root=tmp_path) as run:
            workers = wait_until(lambda: all_up(folder, 2), 60)
            run.send(signal.SIGKILL)
        wait_until(lambda: all(is_gone(pid) for pid in workers), 60)
        wait_until(lambda: not list(leaks.carrying(os.environ[leaks.TOKEN_VARIABLE])), 60)
