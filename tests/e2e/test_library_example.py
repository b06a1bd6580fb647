"""The example of the elastic library does what its page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "elastic_library.py"


def test_the_librarys_example_restarts_its_workers_once_and_prints_what_they_returned() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # The other one may have been stopped before it said anything.
    assert "[adder0]:rank 0 of 2, restart 0" in lines
    assert {"[adder0]:rank 0 of 2, restart 1", "[adder1]:rank 1 of 2, restart 1"} <= set(lines)
    assert lines[-2:] == ["rank 0 returned 249999500000", "rank 1 returned 250000000000"]
    assert "this is what a restart is for" in done.stderr
