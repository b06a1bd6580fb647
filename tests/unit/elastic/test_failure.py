"""A failure is read from whatever a dying worker left; reading never raises."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.elastic.multiprocessing.errors import ProcessFailure


def _failure(path: Path, exitcode: int = 1) -> ProcessFailure:
    return ProcessFailure(0, 123, exitcode, str(path))


def test_the_report_of_a_worker_is_told(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    extra = {"py_callstack": "Traceback...", "timestamp": "1700000000"}
    file.write_text(json.dumps({"message": {"message": "ValueError: no", "extraInfo": extra}}))
    failure = _failure(file)
    assert failure.message_text() == "ValueError: no"
    assert failure.timestamp == 1700000000
    assert failure.error_file == str(file)


def test_the_short_form_is_told(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    file.write_text('{"message": "out of luck", "timestamp": 12}')
    assert (_failure(file).message, _failure(file).timestamp) == ("out of luck", 12)


@pytest.mark.parametrize(
    ("exitcode", "message"),
    [
        (-9, "Signal 9 (SIGKILL) received by PID 123"),
        (3, "PID 123 ended with exit code 3 and left no error file"),
    ],
)
def test_without_a_report_the_exit_status_speaks(tmp_path: Path, exitcode: int, message: str) -> None:
    failure = _failure(tmp_path / "none", exitcode)
    assert failure.message == message
    assert failure.error_file == "<N/A>"
    assert abs(failure.timestamp - time.time()) < 60


def test_two_failures_without_a_report_share_nothing(tmp_path: Path) -> None:
    first, second = _failure(tmp_path / "none"), _failure(tmp_path / "none")
    first.error_file_data["mark"] = 1
    assert "mark" not in second.error_file_data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from([b'{"message": {"extraInfo": []}}', b"[" * 100_000, b'{"message": 5}', b"null"]),
        st.builds(lambda stamp: json.dumps({"message": "x", "timestamp": stamp}).encode(), st.text()),
    )
)
def test_garbage_is_reported_and_never_raises(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "error.json"
    file.write_bytes(data)
    failure = _failure(file)
    assert failure.message_text()
    assert failure.timestamp_isoformat()


def test_a_huge_report_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    file.write_text('{"message": "' + "x" * (2 << 20) + '"}')
    assert "over 1048576 bytes" in _failure(file).message_text()


def test_the_age_counts_from_when_the_report_was_written(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    file.write_text('{"message": "x", "timestamp": 1}')
    earlier = time.time() - 100
    os.utime(file, (earlier, earlier))
    assert 100 <= _failure(file).age_s() < 160


def test_a_report_from_the_future_is_not_younger_than_now(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    file.write_text('{"message": "x", "timestamp": 1}')
    later = time.time() + 1000
    os.utime(file, (later, later))
    assert 0 <= _failure(file).age_s() < 60


def test_the_tail_of_stderr_is_whole_lines_and_survives_bad_bytes(tmp_path: Path) -> None:
    file = tmp_path / "stderr.log"
    file.write_bytes(b"first line\n" * 1000 + b"last \xff line\n")
    failure = ProcessFailure(0, 1, 1, "", stderr_file=str(file))
    assert failure.stderr_tail(30) == "first line\nlast \ufffd line\n"
    assert failure.stderr_tail(1 << 20).startswith("first line\n")
    assert ProcessFailure(0, 1, 1, "").stderr_tail() == ""


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_workers_output_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stderr.log")
    assert ProcessFailure(0, 1, 1, "", stderr_file=str(tmp_path / "stderr.log")).stderr_tail() == ""
