"""Error files between the real torch and us, both ways, and workers whose main torch's `record` decorates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic.multiprocessing import start_processes
from agentd.elastic.multiprocessing.errors import ProcessFailure
from agentd.elastic.multiprocessing.logs import DefaultLogsSpecs, Std

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

OURS, TORCHS = "agentd.elastic.multiprocessing.errors", "torch.distributed.elastic.multiprocessing.errors"

RAISE = """
from {errors} import record
@record
def main():
    raise ValueError("ä \\n\\"quoted\\"")
main()
"""

# Each line of stdin is an action, carried out with one implementation: torch takes seconds to import.
SERVE = """
import json, os, sys
from {errors} import ChildFailedError, ProcessFailure, record

@record
def fail():
    raise ValueError("ä \\n\\"quoted\\"")

@record
def fail_of_child(path):
    raise ChildFailedError("trainer", {{3: ProcessFailure(0, 42, -11, path)}})

def read(path):
    failure = ProcessFailure(0, 42, 1, path)
    text = failure.timestamp_isoformat()
    print(json.dumps([failure.message, failure.timestamp, failure.error_file_data, text]))

for line in sys.stdin:
    action, os.environ["TORCHELASTIC_ERROR_FILE"], *args = line.split()
    try:
        globals()[action](*args)
    except (ValueError, ChildFailedError):
        pass
"""


def _serve(errors: str, *actions: str) -> list[Any]:
    """What the actions print."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE.format(errors=errors)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        input="\n".join(actions),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _without_frames(path: Path) -> str:
    """The file's text with what must differ taken out: the time and the frames."""
    text = path.read_text()
    extra = json.loads(text)["message"]["extraInfo"]
    for value in (extra["py_callstack"], extra["timestamp"]):
        text = text.replace(json.dumps(value), '"..."')
    return text


def test_each_reads_and_passes_on_what_the_other_wrote(tmp_path: Path) -> None:
    ours, torchs = tmp_path / "ours", tmp_path / "torchs"
    _serve(OURS, f"fail {ours}")
    read_by_torch = _serve(
        TORCHS,
        f"fail {torchs}",
        f"fail_of_child {tmp_path}/ours_by_torch {ours}",
        f"fail_of_child {tmp_path}/torchs_by_torch {torchs}",
        f"read - {ours}",
        f"read - {torchs}",
        f"read - {tmp_path}/ours_by_torch",
    )
    read_by_us = _serve(
        OURS,
        f"fail_of_child {tmp_path}/ours_by_us {ours}",
        f"fail_of_child {tmp_path}/torchs_by_us {torchs}",
        f"read - {ours}",
        f"read - {torchs}",
        f"read - {tmp_path}/ours_by_torch",
    )

    assert _without_frames(ours) == _without_frames(torchs)
    assert read_by_us == read_by_torch
    for child, name in ((ours, "ours"), (torchs, "torchs")):
        expected = json.loads(child.read_text())
        expected["message"]["errorCode"] = -11
        assert (tmp_path / f"{name}_by_us").read_text() == json.dumps(expected)
        assert (tmp_path / f"{name}_by_torch").read_text() == json.dumps(expected)


def test_a_worker_with_torchs_record_is_read_by_us(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(RAISE.format(errors=TORCHS))
    context = start_processes(
        "trainer",
        sys.executable,
        {0: (str(script),)},
        {0: {}},
        DefaultLogsSpecs(str(tmp_path / "logs"), redirects=Std.ALL),
    )
    try:
        result = context.wait(180)
    finally:
        context.close()
    assert result is not None
    failure = result.failures[0]
    assert isinstance(failure, ProcessFailure)
    assert failure.message_text() == 'ValueError: ä \n"quoted"'
    assert failure.exitcode == 1
    assert Path(failure.error_file).name == "error.json"
    assert f'File "{script}"' in failure.message["extraInfo"]["py_callstack"]
