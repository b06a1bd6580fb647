"""Error files in places where a file cannot simply be replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from agentd.elastic.multiprocessing.errors import record
@record
def main():
    raise ValueError("the cause")
main()
"""


@pytest.mark.root
def test_a_mounted_error_file_is_written_in_place(tmp_path: Path) -> None:
    """As /dev/termination-log of a Kubernetes container is."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.write_text("something longer than the report " * 100)
    inside.touch()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'mount --bind {outside} {inside} && exec "$0" -c "$1"', sys.executable]
        + [PROGRAM],
        env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(inside), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.endswith("ValueError: the cause\n"), done.stderr
    assert json.loads(outside.read_text())["message"]["message"] == "ValueError: the cause"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "outside"]


@pytest.mark.root
def test_a_file_in_a_folder_that_may_not_be_written_is_written_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "error.json").touch()
    nobody = 65534
    os.chown(folder / "error.json", nobody, nobody)
    program = f"import os; os.setgid({nobody}); os.setuid({nobody})\n{PROGRAM}"
    setup = f"import sys; sys.path.insert(0, {os.getcwd()!r}); import agentd.elastic.multiprocessing.errors\n"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'mount --bind {folder} /mnt && exec "$0" -c "$1"', sys.executable]
        + [setup + program],
        env={**os.environ, "TORCHELASTIC_ERROR_FILE": "/mnt/error.json"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.endswith("ValueError: the cause\n"), done.stderr
    assert json.loads((folder / "error.json").read_text())["message"]["message"] == "ValueError: the cause"
