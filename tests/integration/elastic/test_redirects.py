"""This process' own streams in a file: Python's, C's and children's output, and back again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.elastic.multiprocessing.redirects import redirect

BOTH = """
import ctypes, os, sys
from agentd.elastic.multiprocessing.redirects import redirect_stderr, redirect_stdout
libc = ctypes.CDLL(None)
print("python before", end=" ")
with redirect_stdout(sys.argv[1] + ".out"), redirect_stderr(sys.argv[1] + ".err"):
    print("python inside", end=" ")
    libc.printf(b"c inside ")
    os.system("echo child inside; echo child error >&2")
    print("python error", file=sys.stderr)
print("python after")
libc.printf(b"c after\\n")
"""


def _run(program: str, *args: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", program, *args],
        capture_output=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        **options,
    )


def test_output_of_all_kinds_is_redirected_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "x.out").write_text("from an earlier run")
    done = _run(BOTH, str(tmp_path / "x"))
    assert done.returncode == 0, done.stderr
    inside = (tmp_path / "x.out").read_text()
    assert sorted(inside.split()) == sorted(["python", "inside", "c", "inside", "child", "inside"])
    assert (tmp_path / "x.err").read_text() == "child error\npython error\n"
    assert done.stdout.decode() == "python before python after\nc after\n"
    assert done.stderr == b""


def test_the_streams_come_back_after_an_error_and_no_descriptor_stays(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    console = os.fstat(1)

    def fail_inside() -> None:
        with redirect("stdout", str(tmp_path / "file")):
            os.write(1, b"seen")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert (tmp_path / "file").read_bytes() == b"seen"
    assert os.fstat(1) == console
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_cannot_be_opened_changes_nothing(tmp_path: Path) -> None:
    console = os.fstat(1)
    with pytest.raises(FileNotFoundError), redirect("stdout", str(tmp_path / "none" / "file")):
        pytest.fail("not reached")
    assert os.fstat(1) == console


def test_other_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of 'stdout', 'stderr'"), redirect("stdin", os.devnull):
        pytest.fail("not reached")


def test_a_process_without_any_streams_can_redirect(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "from agentd.elastic.multiprocessing.redirects import redirect\n"
        "with redirect('stdout', sys.argv[1]): os.system('echo inside')\n"
        "try: os.fstat(1)\n"
        "except OSError: os._exit(5)\n"
    )
    done = _run(program, str(tmp_path / "file"))
    assert done.returncode == 5
    assert (tmp_path / "file").read_text() == "inside\n"


def test_a_stdout_that_is_no_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with redirect("stdout", str(tmp_path / "file")):
        print("to the object")
        os.write(1, b"to the descriptor\n")
    assert (tmp_path / "file").read_text() == "to the descriptor\n"
    assert capsys.readouterr().out == "to the object\n"
