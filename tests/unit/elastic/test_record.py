"""What a main function raises reaches its error file and its caller, whatever else goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.multiprocessing.errors import (
    ChildFailedError,
    ErrorHandler,
    ProcessFailure,
    get_error_handler,
    record,
)
from agentd.elastic.multiprocessing.errors.failure import MAX_ERROR_FILE_BYTES


@pytest.fixture
def error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    return path


class Quiet(ErrorHandler):
    """Leaves faulthandler as pytest set it up."""

    def initialize(self) -> None:
        pass


def raising(error: BaseException) -> Callable[[], object]:
    def main() -> None:
        raise error

    return record(main, Quiet())


def _report(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def test_an_exception_is_written_in_torchs_long_form_and_passes(error_file: Path) -> None:
    with pytest.raises(ValueError, match="no luck"):
        raising(ValueError("no luck"))()
    report = _report(error_file)
    extra = report["message"]["extraInfo"]
    assert report == {
        "message": {
            "message": "ValueError: no luck",
            "extraInfo": {"py_callstack": extra["py_callstack"], "timestamp": extra["timestamp"]},
        }
    }
    assert extra["py_callstack"].startswith("Traceback (most recent call last):\n")
    assert extra["py_callstack"].endswith("ValueError: no luck\n")
    assert extra["timestamp"].isdecimal()
    assert error_file.read_bytes() == json.dumps(report).encode()


def test_results_arguments_and_the_name_pass_through(error_file: Path) -> None:
    def main(a: int, *, b: int) -> int:
        return a + b

    recorded = record(main, Quiet())
    assert (recorded(1, b=2), recorded.__name__) == (3, "main")
    assert not error_file.exists()


@pytest.mark.parametrize("code", [None, 0, False])
def test_an_exit_with_status_zero_is_a_return(error_file: Path, code: int | None) -> None:
    assert raising(SystemExit(code))() is None
    assert not error_file.exists()


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit(True), KeyboardInterrupt(), GeneratorExit()])
def test_an_exit_with_a_number_and_an_interrupt_pass_unrecorded(
    error_file: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        raising(error)()
    assert not error_file.exists()


def test_the_text_of_an_exit_is_recorded(error_file: Path) -> None:
    with pytest.raises(SystemExit, match="no such config"):
        raising(SystemExit("no such config"))()
    assert _report(error_file)["message"]["message"] == "SystemExit: no such config"


def test_a_cancelled_main_task_is_recorded(error_file: Path) -> None:
    with pytest.raises(asyncio.CancelledError):
        raising(asyncio.CancelledError())()
    assert _report(error_file)["message"]["message"] == "CancelledError: "


@pytest.mark.parametrize("value", ["", None])
def test_without_a_path_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", value)
    with pytest.raises(ValueError, match="x"):
        raising(ValueError("x"))()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "b" / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    with pytest.raises(ValueError, match="x"):
        raising(ValueError("x"))()
    assert [file.name for file in path.parent.iterdir()] == ["error.json"]


@pytest.mark.parametrize("path", ["/proc/nowhere/error.json", "a\0b", "/", "x" * 5000, "{file}/error.json"])
def test_a_path_that_cannot_be_written_hides_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    (tmp_path / "file").touch()
    chosen = path.format(file=tmp_path / "file")

    class Elsewhere(Quiet):
        def _get_error_file_path(self) -> str:
            return chosen

    def main() -> None:
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        record(main, Elsewhere())()
    assert "cannot be written" in caplog.text


def test_a_full_disk_hides_nothing_and_the_device_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/dev/full")
    with pytest.raises(ValueError, match="the cause"):
        raising(ValueError("the cause"))()
    assert "No space left" in caplog.text
    assert Path("/dev/full").is_char_device()


def test_a_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(link))
    with pytest.raises(ValueError, match="x"):
        raising(ValueError("x"))()
    assert link.is_symlink()
    assert _report(tmp_path / "real")


def test_a_handler_that_fails_hides_nothing(error_file: Path) -> None:
    class Broken(Quiet):
        def record_exception(self, e: BaseException) -> None:
            raise RuntimeError("the handler is broken")

    def main() -> None:
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        record(main, Broken())()


def test_an_exception_that_cannot_tell_its_text_is_recorded(error_file: Path) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("mute")

    with pytest.raises(Mute):
        raising(Mute())()
    assert _report(error_file)["message"]["message"].startswith("Mute: ")


@pytest.mark.parametrize("character", ["x", "\U0001f4a5", "\0", "\ud800"])
def test_a_huge_text_stays_readable(error_file: Path, character: str) -> None:
    with pytest.raises(ValueError):
        raising(ValueError("begin" + character * 2_000_000 + "end"))()
    assert error_file.stat().st_size <= MAX_ERROR_FILE_BYTES
    text = ProcessFailure(0, 1, 1, str(error_file)).message_text()
    assert text.startswith("ValueError: begin")
    assert text.endswith("end")


def test_a_reader_never_sees_half_a_report(error_file: Path) -> None:
    over = threading.Event()
    handler = Quiet()

    def write() -> None:
        for number in range(200):
            handler.record_exception(ValueError(str(number % 10) * 30_000))
        over.set()

    handler.record_exception(ValueError("first"))
    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not over.is_set():
        seen.add(_report(error_file)["message"]["message"][-1])
    writer.join()
    assert seen
    assert [file.name for file in error_file.parent.iterdir()] == ["error.json"]


def _child_report(tmp_path: Path, text: str) -> str:
    path = tmp_path / "child.json"
    path.write_text(text)
    return str(path)


def _failed(tmp_path: Path, text: str, exitcode: int = -11) -> ChildFailedError:
    return ChildFailedError("trainer", {4: ProcessFailure(0, 1, exitcode, _child_report(tmp_path, text))})


LONG = '{"message": {"message": "E: x", "extraInfo": {"py_callstack": "T", "timestamp": "12"}}}'


def test_the_first_failures_file_is_passed_on_with_its_exit_code(error_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError):
        raising(_failed(tmp_path, LONG))()
    report = json.loads(LONG)
    report["message"]["errorCode"] = -11
    assert error_file.read_bytes() == json.dumps(report).encode()


def test_an_exit_code_of_zero_is_not_written(error_file: Path, tmp_path: Path) -> None:
    get_error_handler().dump_error_file(_child_report(tmp_path, LONG), 0)
    assert _report(error_file) == json.loads(LONG)


def test_the_short_form_is_passed_on_as_it_is(error_file: Path, tmp_path: Path) -> None:
    short = '{"message": "short", "timestamp": 5}'
    get_error_handler().dump_error_file(_child_report(tmp_path, short), 3)
    assert _report(error_file) == json.loads(short)


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"message": 1}'])
def test_a_childs_garbage_becomes_a_readable_report(error_file: Path, tmp_path: Path, garbage: str) -> None:
    with pytest.raises(ChildFailedError):
        raising(_failed(tmp_path, garbage))()
    assert "cannot be read" in ProcessFailure(0, 1, 1, str(error_file)).message_text()


def test_what_the_own_file_said_is_logged_before_it_goes(
    error_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error_file.write_text('{"message": "older"}')
    get_error_handler().dump_error_file(_child_report(tmp_path, LONG), 3)
    assert "older" in caplog.text
    assert _report(error_file)["message"]["errorCode"] == 3


def test_a_childs_missing_file_is_a_warning(
    error_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get_error_handler().dump_error_file(str(tmp_path / "none"), 3)
    assert "no error file" in caplog.text
    assert not error_file.exists()


def test_without_an_own_path_passing_on_is_a_logged_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    get_error_handler().dump_error_file(_child_report(tmp_path, LONG), 3)
    assert "set TORCHELASTIC_ERROR_FILE" in caplog.text


@pytest.mark.parametrize("close_stderr", ["", "sys.stderr = None\n", "sys.stderr = io.StringIO()\n"])
def test_a_fatal_signal_prints_stacks_also_with_an_odd_stderr(close_stderr: str) -> None:
    program = (
        "import io, os, sys\n"
        "from agentd.elastic.multiprocessing.errors import record\n"
        f"{close_stderr}"
        "record(lambda: os.abort())()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=30, check=False, cwd=os.getcwd()
    )
    assert b"Fatal Python error: Aborted" in done.stderr


def test_a_pipe_as_error_file_blocks_no_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert ProcessFailure(0, 1, 1, str(tmp_path / "pipe")).error_file == "<N/A>"
