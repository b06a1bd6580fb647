"""The report of failed workers: which was first, and all a person needs of each."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import pytest

from agentd.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

NOW = time.time()


def _silent(local_rank: int, exitcode: int = 1, *, ago: float = 0.0, stderr: str = "") -> ProcessFailure:
    return ProcessFailure(local_rank, 100 + local_rank, exitcode, "", exited_at=NOW - ago, stderr_file=stderr)


def _reported(path: Path, stamp: int, callstack: object = "Traceback:\n  boom\n") -> ProcessFailure:
    extra = {"py_callstack": callstack, "timestamp": str(stamp)}
    path.write_text(json.dumps({"message": {"message": "E: boom", "extraInfo": extra}}))
    return ProcessFailure(0, 7, 1, str(path))


def test_no_failures_are_refused() -> None:
    with pytest.raises(AssertionError, match="at least one"):
        ChildFailedError("trainer", {})


def test_the_first_is_the_earliest() -> None:
    error = ChildFailedError("trainer", {0: _silent(0), 1: _silent(1, ago=50), 2: _silent(2, ago=20)})
    assert error.get_first_failure()[0] == 1


def test_within_a_second_the_finer_time_decides() -> None:
    first, second = _silent(0), _silent(1)
    first.timestamp = second.timestamp = 1000
    second.failed_at = first.failed_at - 0.01
    assert ChildFailedError("trainer", {0: first, 1: second}).get_first_failure()[0] == 1


def test_a_tie_goes_to_the_first_given() -> None:
    first, second = _silent(0), _silent(1)
    second.timestamp, second.failed_at = first.timestamp, first.failed_at
    assert ChildFailedError("trainer", {5: first, 1: second}).get_first_failure()[0] == 5


def test_the_report_begins_with_the_first_failure_and_tells_its_traceback(tmp_path: Path) -> None:
    root = _reported(tmp_path / "error.json", int(NOW) - 100)
    text = str(ChildFailedError("trainer", {3: _silent(1, -9), 2: root}))
    lines = text.splitlines()
    assert lines[1:5] == ["=" * 60, "trainer FAILED", "-" * 60, "Root Cause (first observed failure):"]
    assert lines[5:14] == [
        "[1]:",
        f"  time      : {root.timestamp_isoformat()}",
        f"  host      : {os.uname().nodename}",
        "  rank      : 2 (local_rank: 0)",
        "  exitcode  : 1 (pid: 7)",
        f"  error_file: {root.error_file}",
        "  traceback : Traceback:",
        "    boom",
        "-" * 60,
    ]
    assert lines[14:16] == ["Other failures (1):", "[0]:"]
    assert "  exitcode  : -9 (pid: 101) (SIGKILL)" in lines
    assert lines[-1] == "=" * 60


def test_without_an_error_file_the_end_of_stderr_is_told(tmp_path: Path) -> None:
    (tmp_path / "stderr.log").write_text("CUDA error\nout of memory\n")
    text = str(ChildFailedError("t", {0: _silent(0, stderr=str(tmp_path / "stderr.log"))}))
    assert "  stderr    : CUDA error\n  out of memory\n" in text
    assert "left no error file" in text
    assert "Other failures" not in text


def test_an_error_file_makes_the_end_of_stderr_needless(tmp_path: Path) -> None:
    failure = _reported(tmp_path / "error.json", 5)
    failure.stderr_file = str(tmp_path / "stderr.log")
    (tmp_path / "stderr.log").write_text("noise\n")
    assert "noise" not in str(ChildFailedError("t", {0: failure}))


@pytest.mark.parametrize("callstack", [None, "", 5, ["a"], {"b": 1}])
def test_an_odd_traceback_breaks_no_report(tmp_path: Path, callstack: object) -> None:
    text = str(ChildFailedError("t", {0: _reported(tmp_path / "error.json", 5, callstack)}))
    assert "traceback : " in text


def test_a_report_from_the_far_future_breaks_no_report(tmp_path: Path) -> None:
    failure = _reported(tmp_path / "error.json", 10**18)
    assert abs(failure.timestamp - time.time()) < 60
    assert "time      : 2" in str(ChildFailedError("t", {0: failure}))


def test_the_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(ChildFailedError("t", {3: _silent(0)})))
    assert (error.name, list(error.failures)) == ("t", [3])
    assert str(error).splitlines()[2] == "t FAILED"


def test_failures_without_a_report_have_traits_unless_by_signal() -> None:
    assert _silent(0, 3).error_file_data["errorTraits"]["category"] == "system_terminated_error"
    assert "errorTraits" not in _silent(0, -9).error_file_data
