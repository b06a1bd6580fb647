"""A host that is killed: nothing of its group lives on, whatever it did to get away; nobody else is hit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.api.types import Phase, RunStatus
from agentd.procs import cgroups
from agentd_client import AgentClient
from tests.support.fleet import BIN, Fleet, agentctl, agentd, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60.0

# A worker with a child in its session, one in a session of its own, and a daemon: two forks, another session,
# none of the environment. Each life has files of its own.
WORKER = (
    "import os, pathlib, subprocess, sys, time",
    "folder = pathlib.Path(sys.argv[1]) / f\"life-{os.environ['TORCHELASTIC_RESTART_COUNT']}\"",
    "folder.mkdir(exist_ok=True)",
    "sleeper = ['/bin/sleep', '600']",
    "child = subprocess.Popen(sleeper)",
    "leaver = subprocess.Popen(sleeper, start_new_session=True)",
    "read, write = os.pipe()",
    "if os.fork() == 0:",
    "    os.setsid()",
    "    pid = os.fork()",
    "    if pid == 0:",
    "        os.execve(sleeper[0], sleeper, {})",
    "    os.write(write, str(pid).encode())",
    "    os._exit(0)",
    "os.wait()",
    "daemon = os.read(read, 20).decode()",
    "text = f'{os.getpid()} {child.pid} {leaver.pid} {daemon}'",
    "(folder / 'pids.new').write_text(text)",
    "(folder / 'pids.new').rename(folder / 'pids')",
    "time.sleep(600)",
)


def begin(nodes: Fleet, folder: Path, *flags: str, run_id: str = "r") -> list[int]:
    """A run of one worker; the pids of its first life: worker, child, leaver, daemon."""
    folder.mkdir()
    script = write_script(folder.parent / "worker.py", *WORKER)
    done = agentctl(
        "run", "--detach", "--nodes", nodes.targets(), "--run-id", run_id, "--stop-grace", "2", *flags,
        str(script), str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pids(folder, 0)


def pids(folder: Path, life: int) -> list[int]:
    """What runs in that life of the worker."""
    file = folder / f"life-{life}" / "pids"
    wait_until(file.exists, PATIENCE_S)
    return [int(pid) for pid in file.read_text().split()]


def status(nodes: Fleet, run_id: str = "r") -> RunStatus:
    with AgentClient(nodes["a"].target) as client:
        return client.status(run_id)


def host_of(nodes: Fleet, run_id: str = "r") -> int:
    pid = status(nodes, run_id).nodes[0].groups[0].host_pid
    assert pid > 1, "there is no host now"
    return pid


def all_gone(processes: list[int]) -> bool:
    return all(is_gone(pid) for pid in processes)


def cgroup_of(pid: int) -> Path:
    """The version 2 cgroup a process is in, which must be a group's."""
    folder = cgroups.folder_of(pid)
    assert folder is not None
    assert folder.name.startswith(cgroups.PREFIX), f"{pid} is in {folder}"
    return folder


needs_cgroups = pytest.mark.skipif(
    cgroups.own_home() is None, reason="no version 2 cgroup here in which others may be made"
)
needs_namespaces = pytest.mark.skipif(os.geteuid() != 0, reason="only root may hide cgroups from an agentd")


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that looks like those of the group, and is none."""
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


@needs_cgroups
def test_nothing_outlives_a_killed_host_and_its_group_is_hosted_again(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    folder, other = tmp_path / "out", tmp_path / "other"
    with fleet(tmp_path, "a") as nodes:
        first = begin(nodes, folder, "--max-restarts", "1")
        beside = begin(nodes, other, run_id="beside")
        host, place = host_of(nodes), cgroup_of(first[0])
        assert {cgroup_of(pid) for pid in (host, *first)} == {place}
        assert cgroup_of(beside[0]) != place

        os.kill(host, signal.SIGKILL)
        wait_until(lambda: all_gone(first), PATIENCE_S)
        second = pids(folder, 1)
        assert status(nodes).restart_count == 1
        assert not place.exists(), "the dead host's cgroup is removed"
        assert not any(is_gone(pid) for pid in beside)

        os.kill(host_of(nodes), signal.SIGKILL)
        wait_until(lambda: status(nodes).phase is Phase.FAILED, PATIENCE_S)
        assert all_gone(second)
        assert "host was lost" in str(status(nodes).nodes[0])
        assert stranger.poll() is None
        assert not any(is_gone(pid) for pid in beside)
        place = cgroup_of(beside[0])
        assert agentctl("stop", "beside", "--wait", "--nodes", nodes.targets()).returncode == 0
        assert all_gone(beside)
        assert not place.exists()


@needs_cgroups
def test_the_next_agentd_and_reap_find_the_cgroups_of_hosts_that_died_meanwhile(tmp_path: Path) -> None:
    folder, last = tmp_path / "out", tmp_path / "last"
    with fleet(tmp_path, "a") as nodes:
        first = begin(nodes, folder, "--max-restarts", "1")
        host, place = host_of(nodes), cgroup_of(first[0])
        nodes["a"].kill()
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: is_gone(first[0]), PATIENCE_S, what="workers die with their host")
        nodes.again("a")
        second = pids(folder, 1)
        assert all_gone(first), "also what no session and no parent tied to the group"
        assert not place.exists()

        # An adopted group stays in its cgroup, and ends with it.
        host, place = host_of(nodes), cgroup_of(second[0])
        nodes["a"].kill()
        nodes.again("a")
        assert host_of(nodes) == host
        assert cgroup_of(second[3]) == place
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: status(nodes).phase is Phase.FAILED, PATIENCE_S)
        assert all_gone(second)
        assert not place.exists()

        third = begin(nodes, last, run_id="last")
        host, place = host_of(nodes, "last"), cgroup_of(third[0])
        nodes["a"].kill()
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: is_gone(third[0]), PATIENCE_S)
        assert not is_gone(third[3])
        reap = [str(BIN / "agentd"), "reap", "--state-dir", str(nodes["a"].state_dir)]
        done = subprocess.run(reap, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        assert str(third[3]) in done.stdout
        assert all_gone(third)
        assert not place.exists()


@needs_namespaces
def test_without_cgroups_all_but_a_daemon_die_with_their_host(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """What docs/workers.md says: two forks, another session and another environment together escape."""
    folder = tmp_path / "out"
    hidden = ("unshare", "--mount", "sh", "-c", 'umount -a -t cgroup2; exec "$@"', "sh")
    with fleet(tmp_path) as nodes, agentd(tmp_path, within=hidden) as node:
        nodes.nodes["a"] = node
        first = begin(nodes, folder, "--max-restarts", "1")
        assert cgroups.PREFIX not in str(cgroups.folder_of(first[0]))
        try:
            os.kill(host_of(nodes), signal.SIGKILL)
            wait_until(lambda: all_gone(first[:3]), PATIENCE_S)
            pids(folder, 1)
            assert status(nodes).restart_count == 1
            assert stranger.poll() is None
        finally:
            os.kill(first[3], signal.SIGKILL)
        second = pids(folder, 1)
        assert agentctl("stop", "r", "--wait", "--nodes", nodes.targets()).returncode == 0
        assert all_gone(second), "a host that lives finds its daemons: they descend from it"
