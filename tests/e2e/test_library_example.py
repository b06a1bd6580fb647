"""The example of the elastic library does what its page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "elastic_library.py"


def test_the_librarys_example_restarts_its_workers_once_and_prints_what_they_returned() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line for line in lines if "restart" in line} == {
        f"[adder{rank}]:rank {rank} of 2, restart {count}" for rank in (0, 1) for count in (0, 1)
    }
    assert lines[-2:] == ["rank 0 returned 249999500000", "rank 1 returned 250000000000"]
    assert "this is what a restart is for" in done.stderr
