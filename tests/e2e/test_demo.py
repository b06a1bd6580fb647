"""What `make demo` shows is true: it runs, recovers, ends well and leaves nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_kills_a_worker_recovers_and_ends_well() -> None:
    done = subprocess.run(
        [sys.executable, DEMO],
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"all 6 workers run again, \d+ ms after the kill", done.stdout)
    assert "run demo: succeeded" in done.stdout
    assert "status: SERVING" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
