"""`--standalone`: an agentd for one run, which leaves nothing however agentctl ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentctl.exits import ExitCode
from agentctl.standalone import KEPT, standalone, state_root
from agentd_client import AgentClient
from tests.support.disks import SmallDisk, cannot_mount, small_disk
from tests.support.fleet import is_gone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

AGENTCTL = Path(sys.executable).parent / "agentctl"
TIMEOUT_S = 60
SLEEPER = """
import os, pathlib, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
(folder / f"{rank}.tmp").write_text(f"{os.getpid()} {os.getppid()}")
(folder / f"{rank}.tmp").rename(folder / f"{rank}.pid")
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # A short path, which holds the socket too.
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_STATE_HOME", folder)
        yield Path(folder)


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(text)
    return str(path)


def ctl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AGENTCTL, "run", "--standalone", *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False, cwd=cwd,
    )  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [AGENTCTL, "run", "--standalone", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip


def pids(folder: Path) -> list[int]:
    """Workers and their hosts."""
    return [int(pid) for path in folder.glob("*.pid") for pid in path.read_text().split()]


def agentd_pids(state: Path) -> list[int]:
    """Every agentd of these state directories that lives."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"agentd" in words and any(word.startswith(os.fsencode(state)) for word in words):
            found.append(int(path.parent.name))
    return found


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def test_a_run_needs_nothing_installed_or_started_and_leaves_nothing(tmp_path: Path, own_state: Path) -> None:
    script = program(tmp_path, "import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])")
    done = ctl("--nproc-per-node", "2", script)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[default 0]: rank 0 of 2", "[default 1]: rank 1 of 2"]
    assert agentd_pids(own_state) == []


def test_a_state_directory_too_deep_for_a_socket_has_it_elsewhere_and_not_for_longer_than_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    monkeypatch.setenv("XDG_STATE_HOME", str(deep))
    before = set(Path("/tmp").glob("agentd-*"))
    done = ctl(
        program(tmp_path, "import os; print([d for d in os.listdir('/tmp') if d.startswith('agentd-')])")
    )
    assert done.returncode == 0, done.stderr
    assert "agentd-" in done.stdout
    assert not list(deep.rglob("socket-dir"))
    assert not [path for path in set(Path("/tmp").glob("agentd-*")) - before if str(path) in done.stdout]


def test_the_first_failed_workers_code_is_the_exit_code(tmp_path: Path) -> None:
    script = program(tmp_path, "import sys; print('the cause', file=sys.stderr); sys.exit(42)")
    done = ctl(script)
    assert done.returncode == 42
    assert "exit code 42" in done.stderr
    assert "| the cause" in done.stderr


def test_a_folder_called_agentd_beside_the_user_is_not_taken_for_the_program(tmp_path: Path) -> None:
    (tmp_path / "agentd").mkdir()
    (tmp_path / "agentd" / "__main__.py").write_text("raise SystemExit(99)")
    script = program(tmp_path, "import os; print(os.getcwd())")
    done = ctl(script, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"[default 0]: {tmp_path}\n"), done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_stops_the_run_and_the_agentd(tmp_path: Path, own_state: Path, signum: int) -> None:
    run = start("--stop-grace", "5", program(tmp_path, SLEEPER), str(tmp_path))
    wait_until(lambda: pids(tmp_path), 60)
    run.send_signal(signum)
    _, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 128 + signum, err
    assert "was stopped" in err
    assert all(is_gone(pid) for pid in pids(tmp_path))
    assert agentd_pids(own_state) == []


def test_kill_9_of_agentctl_leaves_nothing(tmp_path: Path, own_state: Path) -> None:
    run = start("--nproc-per-node", "2", "--stop-grace", "1", program(tmp_path, SLEEPER), str(tmp_path))
    wait_until(lambda: len(pids(tmp_path)) == 4, 60)
    everyone = pids(tmp_path) + agentd_pids(own_state)
    run.kill()
    run.communicate(timeout=TIMEOUT_S)
    wait_until(lambda: all(is_gone(pid) for pid in everyone), 60)
    wait_until(lambda: not agentd_pids(own_state), 60)


STOPS_AT_ITS_START = """
import os, signal, sys
if "--ready-fd" in sys.orig_argv: os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_ctrl_c_while_agentd_starts_leaves_nothing_and_says_so(
    tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOPS_AT_ITS_START)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = start(program(tmp_path, SLEEPER), str(tmp_path))
    (agentd,) = wait_until(lambda: agentd_pids(own_state), TIMEOUT_S)
    wait_until(lambda: is_stopped(agentd), TIMEOUT_S)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == ExitCode.INTERRUPTED
    assert told.strip() == "agentctl: interrupted before the run was started: nothing of it is left"
    wait_until(lambda: is_gone(agentd), 60)


def test_a_terminal_that_is_lost_while_agentd_starts_does_not_end_the_run(
    tmp_path: Path, own_state: Path
) -> None:
    run = start(program(tmp_path, SLEEPER), str(tmp_path))
    wait_until(lambda: agentd_pids(own_state), TIMEOUT_S)
    run.send_signal(signal.SIGHUP)
    wait_until(lambda: len(pids(tmp_path)) == 2, TIMEOUT_S)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    assert run.wait(TIMEOUT_S) == 128 + signal.SIGINT
    run.communicate()
    assert all(map(is_gone, pids(tmp_path)))


def test_a_lost_terminal_does_not_end_the_run(tmp_path: Path) -> None:
    script = program(
        tmp_path,
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1], 'up').touch()\n"
        "while not pathlib.Path(sys.argv[1], 'end').exists(): time.sleep(0.02)\n",
    )
    run = start(script, str(tmp_path))
    wait_until((tmp_path / "up").exists, 60)
    run.send_signal(signal.SIGHUP)
    (tmp_path / "end").touch()
    _, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, err


def test_a_state_directory_that_cannot_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    done = ctl("x.py")
    assert done.returncode == ExitCode.UNREACHABLE
    assert "no state directory can be made" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount() or "it can")
@pytest.mark.parametrize(
    ("options", "fill", "problem"),
    [
        ("size=1m", SmallDisk.fill, "is full. Free space there, or name another by XDG_STATE_HOME"),
        ("size=1m,nr_inodes=64", SmallDisk.fill_inodes, "No space left on device"),
        ("size=9m,nr_inodes=18", lambda _disk: None, "takes no more files. Free space there"),
    ],
    ids=["full", "no inodes", "few inodes"],
)
def test_a_disk_that_has_run_out_is_named(
    tmp_path: Path,
    own_state: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    fill: Callable[[SmallDisk], None],
    problem: str,
) -> None:
    with small_disk(own_state / "disk", options) as disk:
        (disk.path / "agentd-standalone").mkdir()
        fill(disk)
        for number in range(10 if "nr_inodes=18" in options else 0):
            (disk.path / str(number)).touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(disk.path))
        done = ctl(program(tmp_path, "pass"))
    assert done.returncode == ExitCode.UNREACHABLE
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agentd_that_was_stopped_by_a_signal_ends_with_agentctl(tmp_path: Path, own_state: Path) -> None:
    run = start("--stop-grace", "1", program(tmp_path, SLEEPER), str(tmp_path))
    wait_until(lambda: len(pids(tmp_path)) == 2, TIMEOUT_S)
    (agentd,) = agentd_pids(own_state)
    os.kill(agentd, signal.SIGSTOP)

    def has_left() -> bool:
        run.send_signal(signal.SIGINT)
        return run.poll() is not None

    wait_until(has_left, TIMEOUT_S)
    run.communicate()
    wait_until(lambda: is_gone(agentd) and all(map(is_gone, pids(tmp_path))), 60)


def test_a_missing_script_is_refused_by_name(tmp_path: Path) -> None:
    done = ctl("/nowhere/train.py")
    assert done.returncode == ExitCode.REFUSED
    assert "/nowhere/train.py" in done.stderr


def test_old_state_is_removed_and_state_in_use_is_not(own_state: Path) -> None:
    environ = dict(os.environ)
    root = state_root(environ)
    assert root == own_state / "agentd-standalone"
    with standalone(environ) as used:
        for number in range(KEPT + 5):
            (root / f"3{number:03}0101-000000-old").mkdir()
        with standalone(environ) as newest:
            with AgentClient(newest.target) as client:
                assert client.health() == "SERVING"
            kept = {path.name for path in root.iterdir()}
            assert {used.state_dir.name} <= kept
            assert len(kept) <= KEPT + 2
    assert agentd_pids(own_state) == []
