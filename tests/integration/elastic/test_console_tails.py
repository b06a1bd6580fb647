"""A group's copied output: tee'd to the console, gathered by filters, and no harm to any worker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentd.elastic.multiprocessing import start_processes
from agentd.elastic.multiprocessing.logs import DefaultLogsSpecs, LogsDest, Std
from agentd.elastic.multiprocessing.tails.console import ConsoleTails

SHELL = "echo out of $RANK; echo warn of $RANK >&2; echo key of $RANK; printf 'end of '$RANK"


def _envs(size: int) -> dict[int, dict[str, str]]:
    return {
        rank: {"RANK": str(rank), "TORCHELASTIC_RUN_ID": "r", "TORCHELASTIC_RESTART_COUNT": "0"}
        for rank in range(size)
    }


def _run(
    specs: DefaultLogsSpecs,
    size: int = 2,
    script: str = SHELL,
    stdout_filters: list[str] | None = None,
    stderr_filters: list[str] | None = None,
) -> None:
    context = start_processes(
        "trainer",
        "sh",
        dict.fromkeys(range(size), ("-c", script)),
        _envs(size),
        specs,
        log_line_prefixes={0: "[zero] "},
        duplicate_stdout_filters=stdout_filters,
        duplicate_stderr_filters=stderr_filters,
    )
    try:
        result = context.wait(60)
        assert result is not None
        assert not result.is_failed()
    finally:
        context.close()


def test_teed_streams_reach_the_console_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _run(DefaultLogsSpecs(str(tmp_path), redirects=Std.ERR, tee=Std.OUT))
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("[zero] ")] == [
        "[zero] out of 0",
        "[zero] key of 0",
        "[zero] end of 0",
    ]
    assert [line for line in lines if line.startswith("[trainer1]:")] == [
        "[trainer1]:out of 1",
        "[trainer1]:key of 1",
        "[trainer1]:end of 1",
    ]
    assert len(lines) == 6
    assert err == ""


def test_filters_gather_lines_of_all_redirected_ranks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    specs = DefaultLogsSpecs(str(tmp_path), redirects=Std.ALL, tee={0: Std.OUT})
    _run(specs, stdout_filters=["key", "end"], stderr_filters=["nothing of that kind"])
    (folder,) = tmp_path.glob("r_*/attempt_0")
    gathered = (folder / "filtered_stdout.log").read_text().splitlines()
    assert sorted(gathered) == [
        "[trainer1]:end of 1",
        "[trainer1]:key of 1",
        "[zero] end of 0",
        "[zero] key of 0",
    ]
    assert (folder / "filtered_stderr.log").read_text() == ""
    assert len(capfd.readouterr().out.splitlines()) == 3


def test_without_copies_there_is_neither_thread_nor_file(tmp_path: Path) -> None:
    before = threading.active_count()
    dest = DefaultLogsSpecs(str(tmp_path), redirects=Std.ALL).reify(_envs(1))
    tails = ConsoleTails(dest, None, "trainer")
    tails.start()
    assert threading.active_count() == before
    tails.stop()
    tails.stop()
    assert not Path(dest.filtered_stdout).exists()


def test_gathered_lines_without_a_place_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0").touch()
    dest = LogsDest(stdouts={0: str(tmp_path / "0")}, filtered_stdout=str(tmp_path / "none" / "file"))
    tails = ConsoleTails(dest, None, "trainer", ["key"])
    tails.start()
    tails.stop()
    assert "are not gathered" in caplog.text


def test_a_second_round_begins_a_new_file_of_gathered_lines(tmp_path: Path) -> None:
    specs = DefaultLogsSpecs(str(tmp_path), redirects=Std.ALL)
    for _ in range(2):
        _run(specs, stdout_filters=["key"])
    files = sorted(tmp_path.glob("r_*/attempt_0*/filtered_stdout.log"))
    assert [file.parent.name for file in files] == ["attempt_0", "attempt_0.1"]
    assert all(len(file.read_text().splitlines()) == 2 for file in files)


PROGRAM = """
import sys
from agentd.elastic.multiprocessing import start_processes
from agentd.elastic.multiprocessing.logs import DefaultLogsSpecs, Std
if __name__ == "__main__":
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; touch done"
    context = start_processes("t", "sh", {0: ("-c", script)}, {0: {}}, DefaultLogsSpecs("logs", tee=Std.OUT))
    result = context.wait()
    context.close()
    sys.exit(7 if not result.is_failed() else 1)
"""


@pytest.mark.parametrize("broken", [True, False], ids=["broken", "stuck"])
def test_a_console_that_is_broken_or_stuck_harms_no_worker(tmp_path: Path, broken: bool) -> None:
    read, write = os.pipe()
    if broken:
        os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
    finally:
        os.close(write)
        if not broken:
            os.close(read)
    assert done.returncode == 7, done.stderr.decode()
    assert (tmp_path / "done").exists()
    (log,) = tmp_path.glob("logs/*/attempt_0/0/stdout.log")
    assert log.read_bytes().count(b"\n") == 20_000
    assert done.stderr.count(b"\n") == 1
    assert str(log.relative_to(tmp_path)) in done.stderr.decode()
