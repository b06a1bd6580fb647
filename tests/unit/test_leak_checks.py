"""The leak checks find what a test leaves, end only that, and let a clean test pass."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.waiting import wait_until

REPO = Path(__file__).resolve().parents[2]


def _sleeper(**env: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(["sleep", "600"], env={**os.environ, **env}, start_new_session=True)
    wait_until(lambda: Path(f"/proc/{child.pid}/cmdline").read_bytes().startswith(b"sleep"))
    return child


def test_a_child_that_lives_on_is_named_and_killed() -> None:
    before = leaks.Footprint.now()
    child = _sleeper()
    found = leaks.left_behind(before, token=None, settle_s=0.05)
    assert f"pid {child.pid}" in found["processes"][0]
    assert "sleep 600" in found["processes"][0]
    assert not Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_an_orphan_is_found_by_its_token_alone() -> None:
    token = secrets.token_hex(16)
    script = (
        "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=2).pid)"
    )
    environment = {**os.environ, leaks.TOKEN_VARIABLE: token}
    made = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=-1, stderr=-3, check=True, timeout=30
    )
    orphan = int(made.stdout)
    # The kernel shows no environment for a moment after an exec has closed what tells of it.
    wait_until(lambda: orphan in {process.pid for process in leaks.carrying(token)})
    leaks.left_behind(leaks.Footprint.now(), token=token, settle_s=0.05)
    wait_until(lambda: not list(leaks.carrying(token)))


def test_a_stranger_with_a_recycled_pid_is_not_signalled() -> None:
    child = _sleeper()
    now = leaks.identify(child.pid)
    leaks.end(leaks.Process(now.pid, now.start_time - 1), token=None)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_a_thread_and_a_socket_are_named_and_closed_ones_are_not() -> None:
    before = leaks.Footprint.now()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-alone")
    thread.start()
    with socket.socket():
        found = leaks.left_behind(before, token=None, settle_s=0.05)
    assert found["threads"] == ["left-alone daemon=False"]
    assert "socket:" in found["file descriptors"][0]
    stop.set()
    thread.join()
    assert leaks.left_behind(before, token=None, settle_s=0.05) == {}


def test_what_ends_by_itself_within_the_bound_is_no_leak() -> None:
    before = leaks.Footprint.now()
    timer = threading.Timer(0.1, lambda: None)
    timer.start()
    assert leaks.left_behind(before, token=None, settle_s=10) == {}


def test_a_leaking_test_fails_and_a_skip_fails_in_ci(tmp_path: Path) -> None:
    suite = tmp_path / "integration" / "test_sample.py"
    suite.parent.mkdir()
    suite.write_text(
        "import pytest, subprocess, tempfile\n"
        "def test_clean(): pass\n"
        "def test_leaves_a_file(): open(tempfile.mktemp(prefix='forgotten'), 'w').close()\n"
        "@pytest.mark.skip(reason='no time')\n"
        "def test_skipped(): pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.conftest",
        "-o",
        "addopts=",
    ]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-o", "pythonpath=", str(suite)],
        env={**os.environ, "CI": "true", "PYTHONPATH": str(REPO), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "2 passed, 2 errors" in done.stdout, done.stdout + done.stderr
    assert "forgotten" in done.stdout
    assert "skipped in CI, where nothing may be" in done.stdout


@pytest.mark.parametrize("deadline", [0.0, 0.05])
def test_wait_until_tells_what_it_saw_last(deadline: float) -> None:
    with pytest.raises(AssertionError, match=r"waited .* in vain for: the moon; last seen: 0"):
        wait_until(lambda: 0, deadline, what="the moon")
