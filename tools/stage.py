"""Runs one stage of a make target: says what runs, then how it ended and how long it took.

python tools/stage.py NAME -- COMMAND ...
"""

from __future__ import annotations

import subprocess
import sys
import time


def main() -> int:
    name, dashes, *command = sys.argv[1:]
    if dashes != "--" or not command:
        print(__doc__, file=sys.stderr)
        return 2
    print(f"== {name} ...", flush=True)
    began = time.monotonic()
    try:
        code = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        code = 130
    verdict = "ok" if code == 0 else f"FAILED, exit code {code}"
    print(f"== {name}: {verdict} ({time.monotonic() - began:.1f} s)", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
